"""Adversarial training and R-Drop for fastNLP: a callback in ``Trainer(callbacks=[...])``, or a mixin in a model."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .attacks import ATTA, AWP, FGM, FGSM, PGD, SAM, TAVAT, FreeLB, NEFTune
from .regularizers import R3F, SMART, VAT, GradientPenalty, RDrop, RDropMixin
from .robustness import HotFlip, Typos, VocabularyTokenizer, robust_accuracy, robust_evaluate, write_report

if TYPE_CHECKING:  # they import fastNLP, so at run time `__getattr__` imports them when they are used
    from . import compat
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

__version__ = "0.3.0"

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


def __getattr__(name: str) -> Any:
    is_callback = name in __all__ and name.endswith("Callback")
    if not is_callback and name not in ("callbacks", "compat"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated as an API")
            import_module("fastNLP")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Expected fastNLP to be installed for `fastnlp_adv.{name}`, but got {error}. Run `pip install fastNLP "
            "'setuptools<82'`; attacks and regularizers work in other loops without it."
        ) from error
    module = import_module(f".{'callbacks' if is_callback else name}", __name__)
    globals()[name] = value = getattr(module, name) if is_callback else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "callbacks"})
