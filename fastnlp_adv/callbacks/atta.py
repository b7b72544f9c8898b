"""ATTA as a callback."""

from __future__ import annotations

from typing import Any

from fastNLP import logger
from torch import Tensor

from ..attacks import ATTA
from ..batch import fields_of
from .base import AttackCallback, takes


class ATTACallback(AttackCallback):
    r"""
    Train with :class:`~fastnlp_adv.ATTA`: each example with its perturbation from the epochs before, at the cost of
    plain training.

    It needs fastNLP's ``TorchDataLoader``, which gives the indices of a batch's examples; call ``compat.repair()``
    before it is built. The perturbations are part of a checkpoint. Under DistributedDataParallel each rank keeps the
    perturbations of its own examples, and an example new to a rank starts at 0; all ranks resume from the first rank's
    perturbations, which the checkpoint holds.

    :options:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``, or
        if the dataloader does not know the indices.

    Example::

        >>> callback = ATTACallback(epsilon=0.1, alpha=0.05)   # trainer = Trainer(..., callbacks=[callback])
    """

    method: ATTA

    @takes(ATTA)
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        super().on_after_trainer_initialized(trainer, driver)
        if not callable(getattr(trainer.dataloader, "get_batch_indices", None)):
            raise ValueError(_no_indices(trainer))
        if trainer.overfit_batches:
            raise ValueError(
                "Expected a Trainer without `overfit_batches`, whose batches come without the indices of their "
                f"examples, but got {trainer.overfit_batches}. Give the dataloader a small data set instead."
            )

    def on_train_begin(self, trainer: Any) -> None:
        super().on_train_begin(trainer)
        self._is_first_batch = True

    def on_train_batch_begin(self, trainer: Any, batch: Any, indices: list[int] | None) -> None:
        if indices is None:
            raise ValueError(_no_indices(trainer))
        self.method.indices = indices
        if self._is_first_batch and trainer.driver.global_rank == 0:
            examples, length = len(trainer.dataloader.dataset), _length(batch, len(indices))
            logger.info(
                "ATTA keeps a perturbation of each example on the CPU: by an estimate from the first batch, "
                f"{examples} examples of {length} tokens will take up to "
                f"{self.method.memory(examples, length) / 2**20:.4g} MiB in every process."
            )
        self._is_first_batch = False


def _length(batch: Any, rows: int) -> int:
    """Return the length of a batch's longest field of integers, which may be the tokens."""
    tensors = [f for _, f in fields_of(batch) if isinstance(f, Tensor) and not f.is_floating_point() and f.dim() > 1]
    return max((f.shape[-1] for f in tensors if len(f) == rows), default=1)


def _no_indices(trainer: Any) -> str:
    return (
        "Expected a dataloader that gives the indices of a batch's examples, for which ATTA keeps perturbations, "
        f"but got {type(trainer.dataloader).__name__}, which does not. Use fastNLP's `TorchDataLoader` or "
        "`prepare_torch_dataloader`, with `fastnlp_adv.compat.repair()` before it on torch 2."
    )
