"""Attacks for evaluation: on the lookups of a model, and on its texts by flipped words and typos."""

from .evaluate import RobustResults, robust_evaluate
from .hotflip import HotFlip
from .results import Attacked, RobustAccuracy, robust_accuracy, write_report
from .texts import VocabularyTokenizer
from .typos import Typos
from .worst_case import WorstCase

__all__ = [
    "Attacked",
    "HotFlip",
    "RobustAccuracy",
    "RobustResults",
    "Typos",
    "VocabularyTokenizer",
    "WorstCase",
    "robust_accuracy",
    "robust_evaluate",
    "write_report",
]
