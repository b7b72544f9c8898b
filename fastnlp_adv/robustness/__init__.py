"""Attacks for evaluation: on the lookups of a model, and on its texts by flipped words and typos."""

from .evaluate import RobustResults, robust_evaluate
from .hotflip import HotFlip
from .results import Attacked, RobustAccuracy, robust_accuracy, write_report
from .text_attack import TextAttack
from .texts import Change, Search, Tokens, VocabularyTokenizer, word_spans
from .typos import Typos
from .worst_case import WorstCase

__all__ = [
    "Attacked",
    "Change",
    "HotFlip",
    "RobustAccuracy",
    "RobustResults",
    "Search",
    "TextAttack",
    "Tokens",
    "Typos",
    "VocabularyTokenizer",
    "WorstCase",
    "robust_accuracy",
    "robust_evaluate",
    "word_spans",
    "write_report",
]
