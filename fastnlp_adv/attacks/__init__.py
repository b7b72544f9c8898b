"""Attacks: one a file, plain PyTorch, usable in any training loop."""

from .base import Attack, Pass
from .embedding import EmbeddingAttack
from .fgm import FGM
from .fgsm import FGSM
from .pgd import PGD

__all__ = ["FGM", "FGSM", "PGD", "Attack", "EmbeddingAttack", "Pass"]
