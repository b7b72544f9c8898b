"""Callbacks: one a file, no mathematics. With ``compat`` the only part that knows fastNLP."""

from .base import AttackCallback, MethodCallback
from .fgm import FGMCallback
from .fgsm import FGSMCallback
from .pgd import PGDCallback
from .rdrop import RDropCallback
from .regularizer import RegularizerCallback

__all__ = [
    "AttackCallback",
    "FGMCallback",
    "FGSMCallback",
    "MethodCallback",
    "PGDCallback",
    "RDropCallback",
    "RegularizerCallback",
]
