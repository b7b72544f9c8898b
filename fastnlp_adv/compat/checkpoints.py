"""Repairs of how fastNLP saves and loads."""

from __future__ import annotations

import array
import functools
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fastNLP import BucketedBatchSampler, RandomBatchSampler, RandomSampler, SequentialSampler, Trainer
from fastNLP.core.dataloaders import TorchDataLoader
from fastNLP.core.drivers import TorchSingleDriver
from fastNLP.core.drivers.torch_driver.torch_driver import TorchDriver
from fastNLP.core.samplers import ReproducibleBatchSampler
from fastNLP.envs import FASTNLP_CHECKPOINT_FILENAME

from .repairs import raises, where

__all__ = ["finished_epoch", "load_arrays", "load_whole_model", "resume_again", "resume_weights_only"]


def _driver() -> TorchDriver:
    driver = TorchSingleDriver(torch.nn.Linear(1, 1), torch.device("cpu"))
    driver.set_optimizers([])
    return driver


def _load_saved_model() -> None:
    file = io.BytesIO()
    torch.save(torch.nn.Linear(1, 1), file)  # as fastNLP does, but its `save_model` writes on the first rank alone
    file.seek(0)
    _driver().load_model(file, only_state_dict=False)


@where(lambda: raises(pickle.UnpicklingError, _load_saved_model))
def load_whole_model() -> None:
    """Let models that were saved with ``only_state_dict=False`` be loaded with ``only_state_dict=False``.

    Such a file is a pickle, and loading it runs the code that it holds, so torch 2.6 and later refuse it unless told
    otherwise. Load only files that you trust. State dicts are loaded as safely as before.
    """
    original = TorchDriver.load_model

    @functools.wraps(original)
    def load_model(self: TorchDriver, filepath: Any, only_state_dict: bool = True, **kwargs: Any) -> None:
        if not only_state_dict:
            saved = torch.load(filepath, map_location="cpu", weights_only=False)
            states = saved if isinstance(saved, dict) else saved.state_dict()
            self.unwrap_model().load_state_dict(states, kwargs.get("strict", True))
            return
        try:
            original(self, filepath, only_state_dict, **kwargs)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(
                f"Expected `filepath` to hold a state dict, but got a file ({filepath}) that holds more than weights. "
                "If it is a whole model that you trust, load it with `only_state_dict=False`; `Trainer.save_model` "
                "saves whole models unless it is told `only_state_dict=True`."
            ) from error

    TorchDriver.load_model = load_model


def _load_checkpoint(extra: Any, dataloader: Any) -> None:
    states = {"optimizers_state_dict": {}, "sampler_states": RandomSampler([0]).state_dict(), "extra": extra}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(states, Path(folder, FASTNLP_CHECKPOINT_FILENAME))
        _driver().load_checkpoint(Path(folder), dataloader, should_load_model=False)


def _one_example() -> TorchDataLoader:
    return TorchDataLoader([0], sampler=RandomSampler([0]), prefetch_factor=None)


@where(lambda: raises(pickle.UnpicklingError, lambda: _load_checkpoint(np.float64(0), _one_example())))
def load_arrays() -> None:
    """Resume from a checkpoint that holds numbers or arrays of numpy, or arrays of Python's ``array``.

    Callbacks and monitors leave the former there, fastNLP's ``ReproduceBatchSampler`` the latter (it wraps samplers
    that fastNLP does not know, ``WeightedRandomSampler`` for one). torch 2.6 and later load only what they know to be
    harmless. These are added while fastNLP loads a checkpoint, and only then; other objects are still refused.
    """
    makers = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]  # numpy keeps these functions private
    numbers = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    harmless: list[Any] = [*makers, np.ndarray, np.dtype, *numbers, array.array]
    original = TorchDriver.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(self: TorchDriver, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with torch.serialization.safe_globals(harmless):
            return original(self, *args, **kwargs)

    TorchDriver.load_checkpoint = load_checkpoint


@where(lambda: raises(AttributeError, lambda: _load_checkpoint(None, dataloader=None)))
def resume_weights_only() -> None:
    """Let ``trainer.run(resume_from=..., resume_training=False)`` load model and optimizers, and start afresh.

    fastNLP then has no dataloader to restore, but looks into it all the same.
    """
    original = TorchDriver.load_sampler_state

    @functools.wraps(original)
    def load_sampler_state(self: TorchDriver, dataloader: Any, sampler_states: dict[str, Any]) -> dict[str, Any]:
        return {} if dataloader is None else original(self, dataloader, sampler_states)

    TorchDriver.load_sampler_state = load_sampler_state


def _forgets_that_the_epoch_is_over() -> bool:
    done, resumed = RandomSampler([0]), RandomSampler([0])
    resumed.load_state_dict({**done.state_dict(), "num_consumed_samples": 1})
    return resumed.num_left_samples != 0


def _remember_the_end(sampler: type) -> None:
    """Let a sampler that was saved at the end of an epoch yield nothing more, once."""
    load: Callable[..., None] = vars(sampler)["load_state_dict"]
    iterate: Callable[..., Iterator[Any]] = vars(sampler)["__iter__"]

    @functools.wraps(load)
    def load_state_dict(self: Any, states: dict[str, Any]) -> None:
        load(self, states)
        self.num_consumed_samples = min(states["num_consumed_samples"], self.num_samples)

    @functools.wraps(iterate)
    def iter_(self: Any) -> Iterator[Any]:
        if self.during_iter or self.num_consumed_samples < self.num_samples:
            return iterate(self)
        self.num_consumed_samples = 0
        if isinstance(self, ReproducibleBatchSampler) and self.epoch < 0:
            self.epoch -= 1  # they count epochs themselves, at the end of each, for another order in the next
        return iter(())

    sampler.load_state_dict, sampler.__iter__ = load_state_dict, iter_  # type: ignore[attr-defined]


@where(_forgets_that_the_epoch_is_over)
def finished_epoch() -> None:
    """Resume after the epoch that a checkpoint was written at the end of (``every_n_batches``).

    fastNLP then takes the sampler to be at the beginning, while the Trainer still is in that epoch, and so silently
    trains all of it again. Now only its end is left, with what callbacks and evaluation do there.
    """
    for sampler in (RandomSampler, SequentialSampler, RandomBatchSampler, BucketedBatchSampler):
        _remember_the_end(sampler)


def _counts_from_where_it_resumed() -> bool:
    trainer = mock.MagicMock(batch_idx_in_epoch=3, start_batch_idx_in_epoch=2)
    Trainer.save_checkpoint(trainer, Path())
    return trainer.driver.save_checkpoint.call_args.kwargs["states"]["num_consumed_batches"] != 3


@where(_counts_from_where_it_resumed)
def resume_again() -> None:
    """Let a training that was resumed be resumed again in the same epoch.

    fastNLP writes into the second checkpoint how many batches there were since the first, but reads it as the number
    since the beginning of the epoch.
    """
    original = Trainer.save_checkpoint

    @functools.wraps(original)
    def save_checkpoint(self: Trainer, *args: Any, **kwargs: Any) -> None:
        start = getattr(self, "start_batch_idx_in_epoch", 0)
        self.start_batch_idx_in_epoch = 0
        try:
            original(self, *args, **kwargs)
        finally:
            self.start_batch_idx_in_epoch = start

    Trainer.save_checkpoint = save_checkpoint
