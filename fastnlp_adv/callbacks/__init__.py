"""Callbacks for fastNLP's Trainer, no mathematics. With ``compat`` the only part that knows fastNLP."""

from . import methods
from .base import AttackCallback, MethodCallback, RegularizerCallback
from .log import LogCallback
from .methods import *  # noqa: F403
from .robust_evaluate import RobustEvaluateCallback

__all__ = ["AttackCallback", "LogCallback", "MethodCallback", "RegularizerCallback", "RobustEvaluateCallback"]
__all__ += methods.__all__
