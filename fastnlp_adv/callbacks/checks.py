"""What a Trainer must be like, checked when it is built and again when training begins."""

from __future__ import annotations

from typing import Any

from fastNLP.core.controllers.loops import TrainBatchLoop
from fastNLP.core.drivers.torch_driver import TorchDDPDriver, TorchFSDPDriver, TorchSingleDriver
from torch import nn

from ..attacks import Attack
from ..regularizers import RDrop, RDropMixin
from .step import BatchStep

__all__ = ["check_trainer"]


def check_trainer(trainer: Any, driver: Any, callback: Any) -> None:
    """
    Refuse what the batch step cannot work with.

    :param trainer: the Trainer.
    :param driver: its driver.
    :param callback: the callback that asks.
    :raises ValueError: with what was found and what to do instead.
    """
    name = type(callback).__name__
    if type(driver) not in (TorchSingleDriver, TorchDDPDriver, TorchFSDPDriver):
        raise ValueError(
            f"Expected {name} to run on fastNLP's torch driver, on one device, under DistributedDataParallel or under "
            f"FullyShardedDataParallel, but got {type(driver).__name__}. Build the Trainer with `driver='torch'` or "
            "`driver='torch_fsdp'`."
        )
    if type(driver) is TorchFSDPDriver:
        _check_sharded(trainer, driver)
    if isinstance(driver.model, nn.DataParallel) and len(driver.model.device_ids) > 1:
        raise ValueError(
            f"Expected {name} to train a model on one device per process, but got nn.DataParallel over "
            f"{len(driver.model.device_ids)} devices. Give the Trainer the bare model and `device=[0, 1]`."
        )
    _check_step_is_free(trainer, name)
    _check_alone(trainer, callback)


def _check_sharded(trainer: Any, driver: Any) -> None:
    if driver.fp16:
        raise ValueError(
            "Expected `fp16` to be False for a sharded model, since each rank would skip other steps than the others, "
            "but got True. Give FullyShardedDataParallel a `mixed_precision` instead."
        )
    others = [getattr(each, "method_class", None) for each in trainer.callback_manager.class_callbacks]
    if driver.outside_ddp and RDrop not in others and isinstance(driver.unwrap_model(), RDropMixin):
        raise ValueError(
            "Expected RDropCallback beside a model with RDropMixin in FullyShardedDataParallel, whose `forward` is "
            "called and not its `train_step`, but got none. Add `RDropCallback()`; it drives the model."
        )


def _check_step_is_free(trainer: Any, name: str) -> None:
    loop = trainer.train_batch_loop
    step = trainer.batch_step_fn or getattr(loop, "batch_step_fn", None)
    own_step = step is not TrainBatchLoop.batch_step_fn and not isinstance(step, BatchStep)
    if own_step or type(loop).run is not TrainBatchLoop.run:  # another `run` need not call `batch_step_fn` at all
        culprit = getattr(step, "__name__", type(step).__name__) if own_step and step else type(loop).__name__
        raise ValueError(
            f"Expected a Trainer with fastNLP's own batch step, since {name} replaces it, but got `{culprit}`. Remove "
            "`batch_step_fn` (or the custom `train_batch_loop`), or call the attack yourself in it: see FGM and PGD."
        )


def _check_alone(trainer: Any, callback: Any) -> None:
    kind = _kind(callback)
    same = [type(other).__name__ for other in trainer.callback_manager.class_callbacks if _kind(other) == kind]
    if len(same) > 1:
        what = "attack" if kind == "attack" else type(callback).__name__
        raise ValueError(f"Expected at most one {what} in a Trainer, but got {' and '.join(same)}. Keep one of them.")


def _kind(callback: Any) -> Any:
    """Return what a Trainer takes one of: an attack, or each regularizer."""
    method = getattr(callback, "method_class", None)
    return "attack" if method is not None and issubclass(method, Attack) else method
