"""Named repairs of fastNLP 1.0.1, whose documented uses fail in places on today's torch, made only when the user asks.

``repair()`` tries each of these uses and mends those that fail. Importing this module mends nothing. A repair is
skipped where fastNLP does not have its fault, and asking twice is the same as asking once.
"""

import array
import functools
import inspect
import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastNLP import BucketedBatchSampler, RandomBatchSampler, RandomSampler, SequentialSampler, Trainer
from fastNLP.core.dataloaders import MixDataLoader, TorchDataLoader
from fastNLP.core.dataloaders.torch_dataloader import fdl, mix_dataloader
from fastNLP.core.drivers import TorchSingleDriver
from fastNLP.core.drivers.torch_driver.torch_driver import TorchDriver
from fastNLP.envs import FASTNLP_CHECKPOINT_FILENAME
from torch.utils.data import Subset

__all__ = ["REPAIRS", "Repair", "repair"]


class Repair:
    """One patch of fastNLP, made at most once, and only where its fault shows.

    :param patch: a function that mends the fault; its name is the name of the repair.
    :param fault: tells whether the fault is there.
    """

    def __init__(self, patch: Callable[[], None], fault: Callable[[], bool]) -> None:
        functools.update_wrapper(self, patch)
        self.name = patch.__name__
        self.in_force = False
        self._patch = patch
        self._fault = fault

    def __call__(self) -> bool:
        """Make the repair if it is needed.

        :return: whether the repair is in force, made by this call or by an earlier one.
        """
        if not self.in_force and self._fault():
            self._patch()
            self.in_force = True
        return self.in_force


REPAIRS: list[Repair] = []


def repair() -> tuple[str, ...]:
    """Make every repair that fastNLP needs on this torch.

    Call it once, before dataloaders are built. It changes fastNLP's own classes, and only those; torch stays as it is.

    :return: the names of the repairs that are in force; each is a function of this module that can be called alone.

    Example::

        >>> from fastNLP import DataSet, prepare_torch_dataloader
        >>> from fastnlp_adv import compat
        >>> "prefetch_factor" in compat.repair()
        True
        >>> len(prepare_torch_dataloader(DataSet({"x": [[1, 2], [3]]}), batch_size=1))
        2
    """
    return tuple(each.name for each in REPAIRS if each())


def _where(fault: Callable[[], bool]) -> Callable[[Callable[[], None]], Repair]:
    """Turn the decorated patch into a repair, made where ``fault()`` is true."""

    def register(patch: Callable[[], None]) -> Repair:
        REPAIRS.append(Repair(patch, fault))
        return REPAIRS[-1]

    return register


def _raises(error: type[Exception], call: Callable[[], Any]) -> bool:
    try:
        call()
    except error:
        return True
    return False


# ---- dataloaders


@_where(lambda: _raises(ValueError, lambda: TorchDataLoader([0])))
def prefetch_factor() -> None:
    """``TorchDataLoader`` and ``prepare_torch_dataloader`` work with their defaults.

    They ask for ``prefetch_factor=2`` even without workers, which torch 1 took for "not set" and torch 2 refuses.
    Without workers, 2 is again "not set"; any other number is still refused by torch.
    """
    original = TorchDataLoader.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: TorchDataLoader, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["num_workers"] == 0 and bound.arguments["prefetch_factor"] == 2:
            bound.arguments["prefetch_factor"] = None
        original(*bound.args, **bound.kwargs)

    TorchDataLoader.__init__ = init


@_where(lambda: _raises(ValueError, lambda: MixDataLoader({"one": [0]}, collate_fn=list)))
def mix_prefetch_factor() -> None:
    """``MixDataLoader`` works without workers, which fails for the same reason.

    It writes ``prefetch_factor=2`` into its call of torch, but has a second call for a torch that does not know the
    argument. That one leaves the choice to torch, which is right everywhere.
    """
    mix_dataloader.torchversion = "1.6"


def _fetches_without_indices() -> bool:
    sevens: Any = [7]
    dataset = fdl._FDataSet(Subset(sevens, [0]))
    return hasattr(dataset, "__getitems__") and dataset.__getitems__([0]) != [(0, 7)]


@_where(_fetches_without_indices)
def batched_fetch() -> None:
    """``TorchDataLoader`` reads data sets that fetch a whole batch at once (Hugging Face's, ``Subset``, ...).

    torch 2 prefers their ``__getitems__``, which fastNLP passes on without the indices that it expects with each
    example. It then raises, or silently makes batches out of the letters of the column names.
    """

    def fetch_batch(self: Any, indices: list[int]) -> list[tuple[int, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]
        return list(zip(indices, examples, strict=True))

    fdl._FDataSet.__getitems__ = fetch_batch


# ---- loading what was saved


def _driver() -> TorchDriver:
    driver = TorchSingleDriver(torch.nn.Linear(1, 1), torch.device("cpu"))
    driver.set_optimizers([])
    return driver


def _load_saved_model() -> None:
    driver, file = _driver(), io.BytesIO()
    driver.save_model(file, only_state_dict=False)
    file.seek(0)
    driver.load_model(file, only_state_dict=False)


@_where(lambda: _raises(pickle.UnpicklingError, _load_saved_model))
def load_whole_model() -> None:
    """Models that were saved with ``only_state_dict=False`` can be loaded with ``only_state_dict=False``.

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


@_where(lambda: _raises(pickle.UnpicklingError, lambda: _load_checkpoint(np.float64(0), _one_example())))
def load_arrays() -> None:
    """Training resumes from a checkpoint that holds numbers or arrays of numpy, or arrays of Python's ``array``.

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


# ---- resuming; these faults are fastNLP's own, on any torch


@_where(lambda: _raises(AttributeError, lambda: _load_checkpoint(None, dataloader=None)))
def resume_weights_only() -> None:
    """``trainer.run(resume_from=..., resume_training=False)`` loads model and optimizers, and starts afresh.

    fastNLP then has no dataloader to restore, but looks into it all the same.
    """
    original = TorchDriver.load_sampler_state

    @functools.wraps(original)
    def load_sampler_state(self: TorchDriver, dataloader: Any, sampler_states: dict[str, Any]) -> dict[str, Any]:
        return {} if dataloader is None else original(self, dataloader, sampler_states)

    TorchDriver.load_sampler_state = load_sampler_state


def _repeats_a_finished_epoch() -> bool:
    sampler = RandomSampler([0])
    sampler.load_state_dict({**sampler.state_dict(), "num_consumed_samples": 1})
    return list(sampler) != []


def _remember_the_end(sampler: type) -> None:
    """Let a sampler that was saved at the end of an epoch yield nothing more, once."""
    load: Callable[..., None] = vars(sampler)["load_state_dict"]
    iterate: Callable[..., Iterator[Any]] = vars(sampler)["__iter__"]

    @functools.wraps(load)
    def load_state_dict(self: Any, states: dict[str, Any]) -> None:
        load(self, states)
        self.num_consumed_samples = min(states["num_consumed_samples"], states["length"])

    @functools.wraps(iterate)
    def iter_(self: Any) -> Iterator[Any]:
        if self.during_iter or self.num_consumed_samples < self.num_samples:
            return iterate(self)
        self.num_consumed_samples = 0
        return iter(())

    sampler.load_state_dict, sampler.__iter__ = load_state_dict, iter_  # type: ignore[attr-defined]


@_where(_repeats_a_finished_epoch)
def resume_after_last_batch() -> None:
    """A checkpoint that was written after the last batch of an epoch resumes with the end of that epoch.

    fastNLP forgets that the epoch was over and silently trains it a second time (``CheckpointCallback`` with
    ``every_n_batches``, or one that saves on exceptions).
    """
    for sampler in (RandomSampler, SequentialSampler, RandomBatchSampler, BucketedBatchSampler):
        _remember_the_end(sampler)


def _counts_from_the_last_resume() -> bool:
    name = "start_batch_idx_in_epoch"
    return name in inspect.getsource(Trainer.save_checkpoint) and not hasattr(Trainer, name)


@_where(_counts_from_the_last_resume)
def resume_twice() -> None:
    """A resumed run can be interrupted and resumed again within the same epoch.

    fastNLP subtracts the batches from before the first resume, so the second one silently trains them again. Now
    batches are counted from the start of the epoch, which is exact while the batch size stays the same.
    """
    Trainer.start_batch_idx_in_epoch = property(lambda self: 0, lambda self, value: None)
