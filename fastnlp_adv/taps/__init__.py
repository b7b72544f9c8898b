"""Where a model is perturbed: which embeddings it has, the tap on their lookups, and the tap on other parameters."""

from .embedding import EmbeddingTap, Tap
from .find import Embedding, Matches, find_embeddings, fits
from .layout import Mask
from .on_model import taps_on
from .perturbation import Delta, Granularity, Lookup
from .shards import is_flat, refuse_sharded, refuse_shards
from .weight import WeightTap

__all__ = [
    "Delta",
    "Embedding",
    "EmbeddingTap",
    "Granularity",
    "Lookup",
    "Mask",
    "Matches",
    "Tap",
    "WeightTap",
    "find_embeddings",
    "fits",
    "is_flat",
    "refuse_sharded",
    "refuse_shards",
    "taps_on",
]
