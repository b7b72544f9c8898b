"""Regularizers: one extra loss term per file, in plain PyTorch."""

from .base import Regularizer
from .dropout import has_dropout, warn_without_dropout
from .gradient_penalty import GradientPenalty
from .r3f import R3F
from .rdrop import RDrop
from .rdrop_mixin import RDropMixin
from .smart import SMART
from .vat import VAT

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
