"""How a model does on the worst that an attack finds: perturbations of its lookups, flipped words, typos."""

from .attacked import Attacked, RobustAccuracy, robust_accuracy
from .evaluate import RobustResults, modes_kept, robust_evaluate
from .hotflip import HotFlip
from .report import write_report
from .scores import Scores, averages, score
from .tokenizer import VocabularyTokenizer
from .typos import Typos
from .worst_case import WorstCase

__all__ = [
    "Attacked",
    "HotFlip",
    "RobustAccuracy",
    "RobustResults",
    "Scores",
    "Typos",
    "VocabularyTokenizer",
    "WorstCase",
    "averages",
    "modes_kept",
    "robust_accuracy",
    "robust_evaluate",
    "score",
    "write_report",
]
