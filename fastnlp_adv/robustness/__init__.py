"""How a model does on the worst perturbation of its lookups that an attack finds."""

from .evaluate import modes_kept, robust_evaluate
from .scores import Scores, averages, score
from .worst_case import WorstCase

__all__ = ["Scores", "WorstCase", "averages", "modes_kept", "robust_evaluate", "score"]
