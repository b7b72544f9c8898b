"""What is added to lookups: one perturbation per token type, or one per position."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .base import Delta
from .lookup import Lookup

__all__ = ["Granularity", "Perturbation", "PositionPerturbation", "VocabPerturbation", "perturbation_for"]

Granularity = Literal["vocab", "sequence", "token"]


class VocabPerturbation:
    r"""
    One perturbation per token type, as if the rows of the weight were perturbed: :math:`G_v=\sum_{i:\,id_i=v} g_i`.

    The table has one slot per position of the micro-batch, not one per row of the vocabulary. The ids are sorted; the
    slot of a token is the first place at which its id stands. So neither the cost nor the shapes depend on the
    vocabulary or on how many distinct tokens there are, which a device would have to tell the host.

    :param lookups: those of the pass that it begins at, by number.
    """

    def __init__(self, lookups: dict[int, list[Lookup]]):
        self._lookups: list[Lookup] = list(chain.from_iterable(lookups.values()))
        self._keys = torch.cat([lookup.ids.flatten() for lookup in self._lookups]).sort().values
        grad = self._lookups[0].grad
        assert grad is not None
        dtype = torch.promote_types(grad.dtype, torch.float32)
        self._table = grad.new_zeros((self._keys.numel(), grad.shape[-1]), dtype=dtype)

    def at(self, number: int | None, ids: Tensor) -> Tensor | None:
        """
        Return what is added to a lookup of these ids, those of one copy of the batch: of shape ``(*ids, features)``, or
        ``None`` for nothing. Its number in its forward is ``None`` where that is not known.
        """
        if not self._keys.numel():
            return None
        slots, known = self._slots(ids)
        return functional.embedding(slots, self._table) * known.unsqueeze(-1)

    def deltas(self, lookups: dict[int, list[Lookup]]) -> list[Delta]:
        """Return the values, and their gradients given those at the lookups of a pass, which are by number."""
        size, features = self._table.shape
        total = self._table.new_zeros((size + 1, features))  # in the last row lands what does not count
        for lookup in chain.from_iterable(lookups.values()):
            slots, known = self._slots(lookup.ids)
            slots = torch.where(lookup.real().squeeze(-1) & known, slots, size)
            assert lookup.grad is not None
            grad = lookup.grad.to(total.dtype)
            if lookup.scale_grad_by_freq:
                grad = grad / _counts(lookup.ids).unsqueeze(-1)
            total.index_add_(0, slots.flatten(), grad.reshape(-1, features))
        return [Delta(self._table, total[:size], (0, 1), find_free=self._free)]

    def set(self, values: Sequence[Tensor]) -> None:
        """Take other values, in the order of :meth:`deltas`."""
        (self._table,) = values

    def _free(self) -> Tensor:
        """Return which slots belong to a token that is no padding."""
        used = torch.zeros_like(self._keys, dtype=torch.long)
        for lookup in self._lookups:
            used.index_add_(0, self._slots(lookup.ids)[0].flatten(), lookup.real().flatten().long())
        return (used > 0).unsqueeze(-1)

    def _slots(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.to(self._keys.dtype).contiguous()
        slots = torch.searchsorted(self._keys, ids).clamp(max=max(self._keys.numel() - 1, 0))
        return slots, self._keys[slots] == ids


class PositionPerturbation:
    """
    One perturbation per position of an example, normalized over each example (``"sequence"``) or each position. All
    forwards of a pass share it.

    :param lookups: those of the pass that it begins at, by number.
    :param total: how many lookups a forward of this pass had, with those that no gradient came to.
    :param starts: what was added to them in this pass, if it was not clean, by number.
    :param per_token: normalize each position by itself.
    """

    def __init__(
        self, lookups: dict[int, list[Lookup]], total: int, starts: dict[int, Tensor] | None = None, *, per_token: bool
    ):
        self._per_token = per_token
        self._total = total
        self._lookups = {number: each[0] for number, each in lookups.items()}
        starts = starts or {}
        self._values = {}
        for number, lookup in self._lookups.items():
            grad = lookup.grad
            assert grad is not None
            dtype = torch.promote_types(grad.dtype, torch.float32)
            start = starts.get(number)
            self._values[number] = torch.zeros_like(grad, dtype=dtype) if start is None else start.to(dtype)

    def at(self, number: int | None, ids: Tensor) -> Tensor | None:
        if number is not None and number >= self._total:
            raise RuntimeError(
                f"Expected every pass over a batch to look up as often as the first pass, {self._total} times, but "
                "got another lookup. Use `granularity='vocab'`, which follows tokens, not positions, or "
                "`torch.no_grad()` for what is not trained."
            )
        if number not in self._values:
            return None
        value = self._values[number]
        if ids.shape != value.shape[:-1]:
            raise RuntimeError(
                f"Expected every pass over a batch to look up ids of the same shape, but got {tuple(ids.shape)} where "
                f"the first pass had {tuple(value.shape[:-1])}. Use `granularity='vocab'`, which follows tokens, not "
                "positions."
            )
        return value

    def deltas(self, lookups: dict[int, list[Lookup]]) -> list[Delta]:
        found = []
        for number, value in self._values.items():
            dims = (-1,) if self._per_token else tuple(range(1, value.dim()))
            grad = self._collect(value, lookups.get(number, []))
            found.append(Delta(value, grad, dims, number, self._lookups[number].real))
        return found

    def set(self, values: Sequence[Tensor]) -> None:
        self._values = dict(zip(self._values, values, strict=True))

    @staticmethod
    def _collect(value: Tensor, lookups: list[Lookup]) -> Tensor:
        total = None
        for lookup in lookups:
            grad = lookup.grad
            assert grad is not None
            if grad.shape != value.shape:
                raise RuntimeError(
                    "Expected all forwards of a pass to look up ids of the same shape, since they share an example's "
                    f"perturbation, but got {tuple(grad.shape[:-1])} and {tuple(value.shape[:-1])}. Use "
                    "`granularity='vocab'`, which follows tokens, not positions."
                )
            grad = torch.where(lookup.real(), grad.to(value.dtype), 0)
            total = grad if total is None else total + grad
        return torch.zeros_like(value) if total is None else total


#: how values reach the outputs of lookups, and how gradients come back from there
Perturbation = VocabPerturbation | PositionPerturbation


def perturbation_for(
    granularity: str, lookups: dict[int, list[Lookup]], total: int, starts: dict[int, Tensor] | None = None
) -> Perturbation:
    """
    Build the perturbation that the lookups of a pass begin with.

    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    :param lookups: those that a gradient came to, by their number in a forward.
    :param total: how many lookups a forward had in all.
    :param starts: what was added to them, by number; nothing if ``None``.
    :return: the perturbation.
    """
    if granularity == "vocab":
        return VocabPerturbation(lookups)
    return PositionPerturbation(lookups, total, starts, per_token=granularity == "token")


def _counts(ids: Tensor) -> Tensor:
    ids = ids.contiguous()
    keys = ids.flatten().sort().values
    return torch.searchsorted(keys, ids, right=True) - torch.searchsorted(keys, ids)
