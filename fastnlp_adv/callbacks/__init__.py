"""Callbacks for fastNLP's Trainer, no mathematics. With ``compat`` the only part that knows fastNLP."""

from .atta import ATTACallback
from .base import AttackCallback, MethodCallback, RegularizerCallback
from .log import LogCallback
from .methods import (
    AWPCallback,
    FGMCallback,
    FGSMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    NEFTuneCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    SAMCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)
from .robust_evaluate import RobustEvaluateCallback
from .table import METHODS

__all__ = [
    "METHODS",
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
