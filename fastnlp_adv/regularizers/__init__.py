"""Regularizers: one extra loss term a file, in plain PyTorch."""

from .dropout import has_dropout, warn_without_dropout
from .rdrop import RDrop
from .rdrop_mixin import RDropMixin

__all__ = ["RDrop", "RDropMixin", "has_dropout", "warn_without_dropout"]
