"""Repairs of fastNLP's dataloaders."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from fastNLP.core.dataloaders import MixDataLoader, TorchDataLoader
from fastNLP.core.dataloaders.torch_dataloader import fdl, mix_dataloader

from .repairs import raises, where

__all__ = ["batched_fetch", "mix_prefetch_factor", "prefetch_factor"]


@where(lambda: raises(ValueError, lambda: TorchDataLoader([0])))
def prefetch_factor() -> None:
    """Let ``TorchDataLoader`` and ``prepare_torch_dataloader`` work with their defaults.

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


@where(lambda: raises(ValueError, lambda: MixDataLoader({"one": [0]}, collate_fn=list)))
def mix_prefetch_factor() -> None:
    """Let ``MixDataLoader`` work without workers, which fails for the same reason.

    It writes ``prefetch_factor=2`` into its call of torch, but has a second call for a torch that does not know the
    argument. That one leaves the choice to torch, which is right everywhere.
    """
    mix_dataloader.torchversion = "1.6"


class _Batched(list):  # type: ignore[type-arg]
    """A data set that fetches a whole batch at once, as torch's ``Subset`` does."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def _fetches_without_indices() -> bool:
    dataset: Any = fdl._FDataSet(_Batched([7]))
    return hasattr(dataset, "__getitems__") and dataset.__getitems__([0]) != [(0, 7)]


@where(_fetches_without_indices)
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
