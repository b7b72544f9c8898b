"""Where a model is perturbed: which embeddings it has, the tap on their lookups, and the tap on other parameters."""

from .base import Delta, Tap
from .embedding import EmbeddingTap
from .find import Embedding, Matches, find_embeddings, fits
from .on_model import taps_on
from .perturbation import Granularity, Lookup
from .shards import is_flat, refuse_sharded, refuse_shards
from .weight import WeightTap, moved_weights

__all__ = [
    "Delta",
    "Embedding",
    "EmbeddingTap",
    "Granularity",
    "Lookup",
    "Matches",
    "Tap",
    "WeightTap",
    "find_embeddings",
    "fits",
    "is_flat",
    "moved_weights",
    "refuse_sharded",
    "refuse_shards",
    "taps_on",
]
