"""Attacks: one per file, plain PyTorch, usable in any training loop."""

from .atta import ATTA
from .awp import AWP
from .base import Attack, Pass
from .embedding import EmbeddingAttack
from .fgm import FGM, FGSM
from .freelb import FreeLB
from .neftune import NEFTune
from .pgd import PGD
from .sam import SAM
from .tavat import TAVAT

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
