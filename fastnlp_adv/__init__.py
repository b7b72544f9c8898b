"""Adversarial training and R-Drop for fastNLP: a callback in ``Trainer(callbacks=[...])``, or a mixin in a model."""

from __future__ import annotations

from . import compat
from .attacks import ATTA, AWP, FGM, FGSM, PGD, SAM, TAVAT, FreeLB, NEFTune
from .callbacks import (
    ATTACallback,
    AWPCallback,
    FGMCallback,
    FGSMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    LogCallback,
    NEFTuneCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    RobustEvaluateCallback,
    SAMCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)
from .regularizers import R3F, SMART, VAT, GradientPenalty, RDrop, RDropMixin
from .robustness import HotFlip, Typos, VocabularyTokenizer, robust_accuracy, robust_evaluate, write_report

__version__ = "0.3.0.dev0"

__all__ = [
    "ATTA",
    "AWP",
    "FGM",
    "FGSM",
    "PGD",
    "R3F",
    "SAM",
    "SMART",
    "TAVAT",
    "VAT",
    "ATTACallback",
    "AWPCallback",
    "FGMCallback",
    "FGSMCallback",
    "FreeLB",
    "FreeLBCallback",
    "GradientPenalty",
    "GradientPenaltyCallback",
    "HotFlip",
    "LogCallback",
    "NEFTune",
    "NEFTuneCallback",
    "PGDCallback",
    "R3FCallback",
    "RDrop",
    "RDropCallback",
    "RDropMixin",
    "RobustEvaluateCallback",
    "SAMCallback",
    "SMARTCallback",
    "TAVATCallback",
    "Typos",
    "VATCallback",
    "VocabularyTokenizer",
    "compat",
    "robust_accuracy",
    "robust_evaluate",
    "write_report",
]
