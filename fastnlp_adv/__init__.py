"""Adversarial training and R-Drop for fastNLP: a callback in ``Trainer(callbacks=[...])``, or a mixin in a model."""

from . import compat
from .attacks import FGM, FGSM, PGD
from .callbacks import FGMCallback, FGSMCallback, PGDCallback, RDropCallback
from .regularizers import RDrop, RDropMixin

__version__ = "0.1.0"

__all__ = [
    "FGM",
    "FGSM",
    "PGD",
    "FGMCallback",
    "FGSMCallback",
    "PGDCallback",
    "RDrop",
    "RDropCallback",
    "RDropMixin",
    "compat",
]
