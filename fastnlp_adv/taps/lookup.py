"""The lookups of a pass: what was asked for, in which forward, and the gradient that came back."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..forwards import Forward

__all__ = ["Lookup", "Record"]


class Lookup:
    """
    One call of an embedding, and the hook that takes the gradient at its output. Until a gradient comes only the graph
    keeps it, so a forward that is dropped leaves nothing.

    :param noted: called with the lookup when a gradient has come.
    :param record: the pass that it belongs to.
    :param number: which lookup of its forward it is; in another forward of the pass the same number is the same place.
    :param module: the module that was called.
    :param ids: what it was called with, of any shape.
    :param copies: how many copies of the batch ``ids`` holds.
    """

    def __init__(
        self,
        noted: Callable[[Lookup], None],
        record: Record,
        number: int,
        module: nn.Embedding,
        ids: Tensor,
        copies: int = 1,
    ):
        self._noted = noted
        self.record = record
        self.number = number
        self.asked = ids
        #: those of one copy, of shape ``(examples, ...)``
        self.ids = ids if copies == 1 else ids[: len(ids) // copies]
        self.copies = copies
        self.padding_idx: int | None = module.padding_idx
        self.scale_grad_by_freq: bool = module.scale_grad_by_freq
        #: False for what a forward that trains looks up without gradients
        self.trained = True
        #: of shape ``(*ids, features)``, the sum over the copies, with respect to the row before any scaling
        self.grad: Tensor | None = None

    def __call__(self, grad: Tensor) -> None:
        """Take a gradient; a second backward pass through the same graph adds to the first."""
        self.receive(grad.detach())

    def receive(self, grad: Tensor) -> None:
        """Take a gradient, with its graph if it has one."""
        if self.copies > 1 and len(grad) != len(self.ids):
            grad = self.by_copy(grad).sum(0)
        self.grad = grad if self.grad is None else self.grad + grad
        self._noted(self)

    def by_copy(self, x: Tensor) -> Tensor:
        """Return a view of shape ``(copies, examples, ...)``."""
        return x.view(self.copies, len(self.ids), *x.shape[1:])

    def real(self) -> Tensor:
        """Return False at ``padding_idx``, whose row of the weight never gets a gradient; shape ``(*ids, 1)``."""
        if self.padding_idx is None:
            return torch.ones_like(self.ids, dtype=torch.bool).unsqueeze(-1)
        return (self.ids != self.padding_idx).unsqueeze(-1)


class Record:
    """
    The lookups of one pass, in one or more forwards up to a backward pass.

    :param from_start: whether it is known that the first lookup is the first of the pass. In a plain loop nobody says
        where a pass begins, and a forward without a backward pass may have come before.
    """

    def __init__(self, *, from_start: bool = False):
        self._from_start = from_start
        self._numbers: dict[tuple[bool, int], int] = {}
        self._unannounced = 0
        self._alive: WeakSet[Lookup] = WeakSet()
        self._received: list[Lookup] = []

    def next_number(self, tap: object, forward: Forward | None) -> int:
        """
        Number the next lookup by the order in which the places of the pass first came.

        :param tap: who counts.
        :param forward: the announced forward that it is in. What no announced forward holds is counted by itself: it
            need not belong to the examples of those that are.
        """
        if forward is None:
            place = (False, self._unannounced)
            self._unannounced += 1
        else:
            place = (True, forward.number(tap))
            if not self._numbers:
                self._from_start = True
        return self._numbers.setdefault(place, len(self._numbers))

    def add(self, lookup: Lookup) -> None:
        self._alive.add(lookup)

    def note(self, lookup: Lookup) -> None:
        """Keep a lookup that a gradient came to."""
        if lookup not in self._received:
            self._received.append(lookup)

    @property
    def count(self) -> int:
        """How many places have been looked up."""
        return len(self._numbers)

    @property
    def reached(self) -> bool:
        return bool(self._received)

    def received(self) -> tuple[dict[int, list[Lookup]], int]:
        """
        Return the lookups that a gradient came to, by their number in a forward, and how many numbers there were. Where
        the beginning of the pass is not known, the first with a gradient is number 0.
        """
        first = 0 if self._from_start else min((lookup.number for lookup in self._received), default=0)
        found: dict[int, list[Lookup]] = {}
        for lookup in sorted(self._received, key=lambda each: each.number):
            found.setdefault(lookup.number - first, []).append(lookup)
        return found, self.count - first

    def of(self, ids: Tensor) -> list[Lookup]:
        """Return the lookups that a checkpoint, which runs its forward again, may be about to make again with ids."""
        alive = list(self._alive)
        return [v for v in alive if v.asked.shape == ids.shape and v.asked.data_ptr() == ids.data_ptr()] or alive
