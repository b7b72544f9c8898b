"""Regularizers: each adds a term to the loss, in plain PyTorch."""

from .base import Regularizer
from .gradient_penalty import GradientPenalty
from .rdrop import RDrop, has_dropout, warn_without_dropout
from .rdrop_mixin import RDropMixin
from .smoothness import R3F, SMART, VAT

__all__ = [
    "R3F",
    "SMART",
    "VAT",
    "GradientPenalty",
    "RDrop",
    "RDropMixin",
    "Regularizer",
    "has_dropout",
    "warn_without_dropout",
]
