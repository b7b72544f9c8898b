"""Named repairs of fastNLP 1.0.1 on today's torch, made only when the user asks.

``repair()`` tries every documented use that fails and repairs those that do. Importing this package changes nothing.
A repair is skipped where fastNLP has no such fault, and asking twice is the same as asking once.
"""

from __future__ import annotations

from .dataloaders import batched_fetch, mix_prefetch_factor, prefetch_factor  # isort: skip
from .checkpoints import finished_epoch, load_arrays, load_whole_model, resume_again, resume_weights_only
from .repairs import REPAIRS, Repair
from .sharding import fsdp_checkpoints, fsdp_launch, fsdp_unwrap

__all__ = [
    "REPAIRS",
    "Repair",
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
]


def repair() -> tuple[str, ...]:
    """Make every repair that fastNLP needs on this torch.

    Call it once, before dataloaders are built. It changes fastNLP's own classes, and only those; torch stays as it is.

    :return: the names of the repairs that are in force; each is a function of this package that can be called alone.

    Example::

        >>> from fastNLP import DataSet, prepare_torch_dataloader
        >>> from fastnlp_adv import compat
        >>> "prefetch_factor" in compat.repair()
        True
        >>> len(prepare_torch_dataloader(DataSet({"x": [[1, 2], [3]]}), batch_size=1))
        2
    """
    return tuple(each.name for each in REPAIRS if each())
