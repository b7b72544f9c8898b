"""Named repairs of fastNLP 1.0.1 on today's torch, made only when the user asks.

``repair()`` tries every documented use that fails and repairs those that do. Importing this package changes nothing.
A repair is skipped where fastNLP has no such fault, and asking twice is the same as asking once.
"""

from __future__ import annotations

from .repairs import (
    REPAIRS,
    batched_fetch,
    finished_epoch,
    load_arrays,
    load_whole_model,
    mix_prefetch_factor,
    prefetch_factor,
    repair,
    resume_again,
    resume_weights_only,
    save_to_new_folder,
)
from .sharding import fsdp_checkpoints, fsdp_launch, fsdp_unwrap

__all__ = [
    "REPAIRS",
    "batched_fetch",
    "finished_epoch",
    "fsdp_checkpoints",
    "fsdp_launch",
    "fsdp_unwrap",
    "load_arrays",
    "load_whole_model",
    "mix_prefetch_factor",
    "prefetch_factor",
    "repair",
    "resume_again",
    "resume_weights_only",
    "save_to_new_folder",
]
