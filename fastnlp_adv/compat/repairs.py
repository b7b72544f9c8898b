"""The list of repairs, and the repairs of fastNLP's dataloaders, and of how it saves and loads."""

from __future__ import annotations

import array
import functools
import inspect
import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fastNLP import BucketedBatchSampler, RandomBatchSampler, RandomSampler, SequentialSampler, Trainer
from fastNLP.core.dataloaders import MixDataLoader, TorchDataLoader
from fastNLP.core.dataloaders.torch_dataloader import fdl, mix_dataloader
from fastNLP.core.drivers import TorchSingleDriver
from fastNLP.core.drivers.torch_driver.torch_driver import TorchDriver
from fastNLP.core.samplers import ReproducibleBatchSampler
from fastNLP.envs import FASTNLP_CHECKPOINT_FILENAME

#: by name, in the order in which they are made; each returns whether it is in force
REPAIRS: dict[str, Callable[[], bool]] = {}


def repair() -> tuple[str, ...]:
    """Make every repair that fastNLP needs on this torch.

    Call it once, before dataloaders are built. It changes fastNLP's own classes, and only those; torch stays unchanged.

    :return: the names of the repairs in force. Each is also a function of this package, to make it without the others.

    Example::

        >>> from fastNLP import DataSet, prepare_torch_dataloader
        >>> from fastnlp_adv import compat
        >>> "prefetch_factor" in compat.repair()
        True
        >>> len(prepare_torch_dataloader(DataSet({"x": [[1, 2], [3]]}), batch_size=1))
        2
    """
    return tuple(name for name, make in REPAIRS.items() if make())


def where(fault: Callable[[], bool]) -> Callable[[Callable[[], None]], Callable[[], bool]]:
    """List the decorated patch as a repair, made at most once and only where ``fault()`` is true."""

    def register(patch: Callable[[], None]) -> Callable[[], bool]:
        @functools.cache
        @functools.wraps(patch)
        def make() -> bool:
            needed = fault()
            if needed:
                patch()
            return needed

        REPAIRS[patch.__name__] = make
        return make

    return register


def raises(kind: type[Exception], call: Callable[..., Any], *args: Any) -> bool:
    """Return whether the call ends in an error of this kind."""
    try:
        call(*args)
    except Exception as error:
        return isinstance(error, kind)
    return False


def around(owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Call ``change``, with the original as its first argument, in place of a function or method."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(lambda *args, **kwargs: change(original, *args, **kwargs)))


def replaces(owner: Any, name: str, fault: Callable[[], bool]) -> Callable[[Callable[..., Any]], Callable[[], bool]]:
    """List the decorated function as the repair that runs it in place of a function or method, see :func:`around`."""
    return lambda change: where(fault)(functools.wraps(change)(lambda: around(owner, name, change)))


@replaces(TorchDataLoader, "__init__", lambda: raises(ValueError, TorchDataLoader, [0]))
def prefetch_factor(original: Any, *args: Any, **kwargs: Any) -> None:
    """Let ``TorchDataLoader`` and ``prepare_torch_dataloader`` work with their defaults.

    They ask for ``prefetch_factor=2`` even without workers, which torch 1 took for "not set" and torch 2 refuses.
    Without workers, 2 is again "not set"; any other number is still refused by torch.
    """
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.arguments["num_workers"] == 0 and bound.arguments["prefetch_factor"] == 2:
        bound.arguments["prefetch_factor"] = None
    original(*bound.args, **bound.kwargs)


@where(lambda: raises(ValueError, lambda: MixDataLoader({"one": [0]}, collate_fn=list)))
def mix_prefetch_factor() -> None:
    """Let ``MixDataLoader`` work without workers, which fails for the same reason.

    It has a second call of torch, for versions that do not know ``prefetch_factor``; that one works everywhere.
    """
    mix_dataloader.torchversion = "1.6"


@where(lambda: not hasattr(fdl._FDataSet, "__getitems__"))
def batched_fetch() -> None:
    """Let ``TorchDataLoader`` read data sets that fetch a whole batch at once (Hugging Face's, ``Subset``, ...).

    torch 2 prefers their ``__getitems__``, which fastNLP passes on without the indices that it expects with each
    example. It then raises, or silently makes batches out of the letters of the column names.
    """

    def fetch_batch(self: Any, indices: list[int]) -> list[tuple[int, Any]]:
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(indices) if callable(fetch) else [self.dataset[index] for index in indices]
        return list(zip(indices, examples, strict=True))

    fdl._FDataSet.__getitems__ = fetch_batch


def _saves_to_missing_folder() -> bool:
    existed: list[bool] = []
    driver = SimpleNamespace(barrier=int, save_model=lambda file, *_: existed.append(file.parent.exists()))
    with tempfile.TemporaryDirectory() as folder:
        Trainer.save_model(SimpleNamespace(on_save_model=int, driver=driver), Path(folder, "new"))
    return existed == [False]


@replaces(Trainer, "save_model", _saves_to_missing_folder)
def save_to_new_folder(original: Any, *args: Any, **kwargs: Any) -> None:
    """Let ``Trainer.save_model`` make its folder, and those above it, where they do not exist.

    fastNLP passes the path to torch, which raises. A ``model_save_fn`` still makes its own folder.
    """
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if given.get("model_save_fn") is None and isinstance(given["folder"], (str, Path)):
        Path(given["folder"]).mkdir(parents=True, exist_ok=True)
    original(*args, **kwargs)


def _driver() -> TorchDriver:
    driver = TorchSingleDriver(torch.nn.Linear(1, 1), torch.device("cpu"))
    driver.set_optimizers([])
    return driver


def _load_saved_model() -> None:
    file = io.BytesIO()
    torch.save(torch.nn.Linear(1, 1), file)  # the driver's `save_model` does so only on the first rank
    file.seek(0)
    _driver().load_model(file, only_state_dict=False)


@replaces(TorchDriver, "load_model", lambda: raises(pickle.UnpicklingError, _load_saved_model))
def load_whole_model(original: Any, self: Any, filepath: Any, only_state_dict: bool = True, **kwargs: Any) -> None:
    """Let models that were saved with ``only_state_dict=False`` be loaded with ``only_state_dict=False``.

    Such a file is a pickle, and loading it runs the code that it holds, so torch 2.6 and later refuse it by default.
    Load only files that you trust. State dicts are loaded as safely as before.
    """
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
            "saves whole models unless called with `only_state_dict=True`."
        ) from error


def _resume_weights(extra: Any) -> None:
    states = {"optimizers_state_dict": {}, "sampler_states": RandomSampler([0]).state_dict(), "extra": extra}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(states, Path(folder, FASTNLP_CHECKPOINT_FILENAME))
        _driver().load_checkpoint(Path(folder), dataloader=None, should_load_model=False)


@replaces(TorchDriver, "load_checkpoint", lambda: raises(pickle.UnpicklingError, _resume_weights, np.float64(0)))
def load_arrays(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Resume from a checkpoint that holds numbers or arrays of numpy, or arrays of Python's ``array``.

    Callbacks and monitors leave the former there, fastNLP's ``ReproduceBatchSampler`` the latter (it wraps samplers
    that fastNLP does not know, ``WeightedRandomSampler`` for one). torch 2.6 and later load only a list of harmless
    types. These are added while fastNLP loads a checkpoint, and only then; other objects are still refused.
    """
    makers = [np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]]  # numpy keeps these functions private
    numbers = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    harmless: list[Any] = [*makers, np.ndarray, np.dtype, *numbers, array.array]
    with torch.serialization.safe_globals(harmless):
        return original(*args, **kwargs)


@replaces(TorchDriver, "load_sampler_state", lambda: raises(AttributeError, _resume_weights, None))
def resume_weights_only(original: Any, self: Any, dataloader: Any, states: Any) -> Any:
    """Let ``trainer.run(resume_from=..., resume_training=False)`` load model and optimizers, and start afresh.

    fastNLP then has no dataloader to restore, but looks into it all the same.
    """
    return {} if dataloader is None else original(self, dataloader, states)


def _forgets_that_the_epoch_is_over() -> bool:
    resumed = RandomSampler([0])
    resumed.load_state_dict({**RandomSampler([0]).state_dict(), "num_consumed_samples": 1})
    return resumed.num_left_samples != 0


@where(_forgets_that_the_epoch_is_over)
def finished_epoch() -> None:
    """Resume after the epoch that a checkpoint was written at the end of (``every_n_batches``).

    fastNLP then takes the sampler to be at the beginning, while the Trainer still is in that epoch, and so silently
    trains all of it again. Now the sampler yields nothing more, once, and callbacks and evaluation end the epoch.
    """

    def load(original: Any, self: Any, states: dict[str, Any]) -> None:
        original(self, states)
        self.num_consumed_samples = min(states["num_consumed_samples"], self.num_samples)

    def iterate(original: Any, self: Any) -> Any:
        if self.during_iter or self.num_consumed_samples < self.num_samples:
            return original(self)
        self.num_consumed_samples = 0
        if isinstance(self, ReproducibleBatchSampler) and self.epoch < 0:
            self.epoch -= 1  # they count epochs themselves, at the end of each, for another order in the next
        return iter(())

    for sampler in (RandomSampler, SequentialSampler, RandomBatchSampler, BucketedBatchSampler):
        around(sampler, "load_state_dict", load)
        around(sampler, "__iter__", iterate)


def _counts_from_where_it_resumed() -> bool:
    saved: dict[str, Any] = {}
    driver = SimpleNamespace(barrier=int, save_checkpoint=lambda states, **_: saved.update(states))
    trainer = SimpleNamespace(on_save_checkpoint=dict, trainer_state=SimpleNamespace(state_dict=dict), driver=driver)
    trainer.dataloader, trainer.batch_idx_in_epoch, trainer.start_batch_idx_in_epoch = None, 3, 2
    Trainer.save_checkpoint(trainer, Path())
    return saved["num_consumed_batches"] != 3


@replaces(Trainer, "save_checkpoint", _counts_from_where_it_resumed)
def resume_again(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    """Let a training that was resumed be resumed again in the same epoch.

    fastNLP writes into the second checkpoint how many batches there were since the first, but reads it as the number
    since the beginning of the epoch.
    """
    start = getattr(self, "start_batch_idx_in_epoch", 0)
    self.start_batch_idx_in_epoch = 0
    try:
        original(self, *args, **kwargs)
    finally:
        self.start_batch_idx_in_epoch = start
