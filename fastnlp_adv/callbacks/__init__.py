"""Callbacks: one per file, no mathematics. With ``compat`` the only part that knows fastNLP."""

from .atta import ATTACallback
from .awp import AWPCallback
from .base import AttackCallback, MethodCallback, RegularizerCallback
from .fgm import FGMCallback
from .fgsm import FGSMCallback
from .freelb import FreeLBCallback
from .gradient_penalty import GradientPenaltyCallback
from .log_callback import LogCallback
from .neftune import NEFTuneCallback
from .pgd import PGDCallback
from .r3f import R3FCallback
from .rdrop import RDropCallback
from .robust_evaluate import RobustEvaluateCallback
from .sam import SAMCallback
from .smart import SMARTCallback
from .tavat import TAVATCallback
from .vat import VATCallback

__all__ = [
    "ATTACallback",
    "AWPCallback",
    "AttackCallback",
    "FGMCallback",
    "FGSMCallback",
    "FreeLBCallback",
    "GradientPenaltyCallback",
    "LogCallback",
    "MethodCallback",
    "NEFTuneCallback",
    "PGDCallback",
    "R3FCallback",
    "RDropCallback",
    "RegularizerCallback",
    "RobustEvaluateCallback",
    "SAMCallback",
    "SMARTCallback",
    "TAVATCallback",
    "VATCallback",
]
