"""Attacks, one per file but AWP and SAM: plain PyTorch, usable in any training loop."""

from .atta import ATTA
from .base import Attack, Pass
from .embedding import EmbeddingAttack
from .fgm import FGM, FGSM
from .freelb import FreeLB
from .neftune import NEFTune
from .pgd import PGD
from .tavat import TAVAT
from .weights import AWP, SAM

__all__ = [
    "ATTA",
    "AWP",
    "FGM",
    "FGSM",
    "PGD",
    "SAM",
    "TAVAT",
    "Attack",
    "EmbeddingAttack",
    "FreeLB",
    "NEFTune",
    "Pass",
]
