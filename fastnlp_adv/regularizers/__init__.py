"""Regularizers: one extra loss term a file, in plain PyTorch."""

from .base import Regularizer
from .dropout import has_dropout, warn_without_dropout
from .rdrop import RDrop
from .rdrop_mixin import RDropMixin

__all__ = ["RDrop", "RDropMixin", "Regularizer", "has_dropout", "warn_without_dropout"]
