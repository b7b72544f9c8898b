"""What a perturbation is made of: one vector a token type, or one vector a position.

A perturbation holds its free variables in ``values`` and knows how they reach the outputs of the lookups
(:meth:`Perturbation.at`) and how gradients at those outputs come back to the variables (:meth:`Perturbation.collect`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["GRANULARITIES", "Lookup", "Perturbation", "PositionPerturbation", "VocabPerturbation", "perturbation_for"]

GRANULARITIES = ("vocab", "sequence", "token")


@dataclass
class Lookup:
    """
    One call of an embedding.

    :param ids: what was looked up, of any shape.
    :param grad: the gradient at its output, of shape ``(*ids, features)``, divided by the scale of a scaled embedding.
    :param padding_idx: the embedding's own.
    :param scale_grad_by_freq: the embedding's own.
    :param start: what was added to it in the first pass, if that was not clean.
    """

    ids: Tensor
    grad: Tensor
    padding_idx: int | None = None
    scale_grad_by_freq: bool = False
    start: Tensor | None = None

    def real(self) -> Tensor:
        """False at ``padding_idx``, whose row of the weight never gets a gradient; shape ``(*ids, 1)``."""
        if self.padding_idx is None:
            return torch.ones_like(self.ids, dtype=torch.bool).unsqueeze(-1)
        return (self.ids != self.padding_idx).unsqueeze(-1)


class Perturbation(ABC):
    """The free variables of a perturbation, and their way to the lookups and back."""

    values: list[Tensor]

    @abstractmethod
    def dims(self, value: Tensor) -> tuple[int, ...]:
        """The dimensions of ``value`` that share one norm."""

    @abstractmethod
    def at(self, index: int, ids: Tensor) -> Tensor | None:
        """What is added to lookup number ``index`` of a pass; ``None`` for nothing."""

    @abstractmethod
    def collect(self, lookups: dict[int, Lookup]) -> list[Tensor]:
        """The gradients of ``values``, given those at the lookups of a pass."""

    @abstractmethod
    def real(self) -> list[Tensor]:
        """Which elements of ``values`` are free; padding and unused slots stay 0. Broadcasts to ``values``."""


class VocabPerturbation(Perturbation):
    r"""
    One perturbation a token type, as if the rows of the weight were perturbed: :math:`G_v=\sum_{i:\,id_i=v} g_i`.

    The table has one slot a position of the micro-batch, not one a row of the vocabulary. The ids are sorted; the slot
    of a token is the first place at which its id stands. So neither the cost nor the shapes depend on the vocabulary or
    on how many distinct tokens there are, which a device would have to tell the host.

    :param lookups: those of the pass that it begins at, by number.
    """

    def __init__(self, lookups: dict[int, Lookup]):
        self._keys = torch.cat([lookup.ids.flatten() for lookup in lookups.values()]).sort().values
        first = next(iter(lookups.values()))
        self._lookups = list(lookups.values())
        dtype = torch.promote_types(first.grad.dtype, torch.float32)
        self.values = [first.grad.new_zeros((self._keys.numel(), first.grad.shape[-1]), dtype=dtype)]

    def dims(self, value: Tensor) -> tuple[int, ...]:
        return (0, 1)

    def at(self, index: int, ids: Tensor) -> Tensor | None:
        slots, known = self._slots(ids)
        return functional.embedding(slots, self.values[0]) * known.unsqueeze(-1)

    def collect(self, lookups: dict[int, Lookup]) -> list[Tensor]:
        size, features = self.values[0].shape
        total = self.values[0].new_zeros((size + 1, features))  # in the last row lands what does not count
        for lookup in lookups.values():
            slots, known = self._slots(lookup.ids)
            slots = torch.where(lookup.real().squeeze(-1) & known, slots, size)
            grad = lookup.grad.to(total.dtype)
            if lookup.scale_grad_by_freq:
                grad = grad / _counts(lookup.ids).unsqueeze(-1)
            total.index_add_(0, slots.flatten(), grad.reshape(-1, features))
        return [total[:size]]

    def real(self) -> list[Tensor]:
        used = torch.zeros_like(self._keys, dtype=torch.long)
        for lookup in self._lookups:
            used.index_add_(0, self._slots(lookup.ids)[0].flatten(), lookup.real().flatten().long())
        return [(used > 0).unsqueeze(-1)]

    def _slots(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.to(self._keys.dtype).contiguous()
        slots = torch.searchsorted(self._keys, ids).clamp(max=self._keys.numel() - 1)
        return slots, self._keys[slots] == ids


class PositionPerturbation(Perturbation):
    """
    One perturbation a position of a lookup, normalized over each example (``"sequence"``) or each position.

    :param lookups: those of the pass that it begins at, by number.
    :param total: how many lookups this pass had, with those that no gradient came to.
    :param per_token: normalize each position by itself.
    """

    def __init__(self, lookups: dict[int, Lookup], total: int, *, per_token: bool):
        self._per_token = per_token
        self._total = total
        self._lookups = lookups
        self._place = {index: place for place, index in enumerate(lookups)}
        dtype = torch.promote_types(next(iter(lookups.values())).grad.dtype, torch.float32)
        self.values = [
            torch.zeros_like(lookup.grad, dtype=dtype) if lookup.start is None else lookup.start.to(dtype)
            for lookup in lookups.values()
        ]

    def dims(self, value: Tensor) -> tuple[int, ...]:
        return (-1,) if self._per_token else tuple(range(1, value.dim()))

    def at(self, index: int, ids: Tensor) -> Tensor | None:
        if index >= self._total:
            raise RuntimeError(
                f"Expected every pass over a batch to look up as often as the first pass, {self._total} times, but "
                "got another lookup. Use `granularity='vocab'`, which follows tokens, not positions, or "
                "`torch.no_grad()` for what is not trained."
            )
        if index not in self._place:
            return None
        value = self.values[self._place[index]]
        if ids.shape != value.shape[:-1]:
            raise RuntimeError(
                f"Expected every pass over a batch to look up ids of the same shape, but got {tuple(ids.shape)} where "
                f"the first pass had {tuple(value.shape[:-1])}. Use `granularity='vocab'`, which follows tokens, not "
                "positions."
            )
        return value

    def collect(self, lookups: dict[int, Lookup]) -> list[Tensor]:
        grads = []
        for index, value in zip(self._lookups, self.values, strict=True):
            lookup = lookups.get(index)
            grads.append(
                torch.zeros_like(value)
                if lookup is None
                else torch.where(lookup.real(), lookup.grad.to(value.dtype), 0)
            )
        return grads

    def real(self) -> list[Tensor]:
        return [lookup.real() for lookup in self._lookups.values()]


def perturbation_for(granularity: str, lookups: dict[int, Lookup], total: int | None = None) -> Perturbation:
    """
    A perturbation of zero for the lookups of a pass.

    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    :param lookups: those that a gradient came to, by their number in the order of the pass.
    :param total: how many lookups the pass had in all; up to the last in ``lookups`` if ``None``.
    :return: the perturbation.
    """
    if granularity == "vocab":
        return VocabPerturbation(lookups)
    return PositionPerturbation(lookups, max(lookups) + 1 if total is None else total, per_token=granularity == "token")


def _counts(ids: Tensor) -> Tensor:
    ids = ids.contiguous()
    keys = ids.flatten().sort().values
    return torch.searchsorted(keys, ids, right=True) - torch.searchsorted(keys, ids)
