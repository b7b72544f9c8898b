"""Lookups of which a part is attacked: which rows those are, and whether the model kept them in order."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..batch import Part
from .lookup import Lookup

__all__ = ["Order", "rows_of"]


def rows_of(part: Part, alone: bool, ids: Tensor, copies: int, name: str) -> Tensor | None:
    """
    Return which rows of a copy of the batch are attacked.

    :param part: the examples under attack.
    :param alone: whether the pass runs on those alone.
    :param ids: what the embedding was asked for.
    :param copies: how many copies of the batch these are.
    :param name: the name of the embedding.
    :return: the rows; ``None`` for all.
    :raises RuntimeError: if ``ids`` have no row for each example.
    """
    examples = len(part) if alone else part.of
    if not ids.dim() or len(ids) != copies * examples:
        raise RuntimeError(
            f"Expected embedding `{name}` to be asked for ids with a row for each of the {copies * examples} "
            f"examples of a pass, since `fraction` attacks some of them, but got ids of shape {tuple(ids.shape)}. "
            "Use `fraction=1`, or an `emb_name` that matches none but embeddings of such ids."
        )
    return None if alone else part.rows(ids.device)


class Order:
    """
    Watches, in the first step that attacks a part, whether all passes look up the same examples. That reads the device.

    :param name: the name of the embedding.
    """

    def __init__(self, name: str):
        self._name = name
        #: what the attacked examples were asked for, by the number of the lookup; ``None`` once that is settled
        self.asked: dict[int, Tensor] | None = {}

    def check(self, lookup: Lookup) -> None:
        """Warn where the rows of the whole batch seem to be other examples than those of the part."""
        if self.asked is None:
            return
        before = self.asked.setdefault(lookup.number, lookup.ids.clone())
        if before.shape == lookup.ids.shape and not torch.equal(before, lookup.ids):
            self.asked = None
            warnings.warn(
                f"`fraction` expects the model to look up examples in the order of the batch, but embedding "
                f"`{self._name}` was asked for other ids of the attacked ones in another pass. A model that sorts the "
                "batch has the wrong examples perturbed: sort before, or use `fraction=1`. One that masks words itself "
                "can go on.",
                stacklevel=2,
            )
