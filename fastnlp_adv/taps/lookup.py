"""The lookups of a pass: what was asked for, in which forward, and the gradient that came back."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..forwards import Forward

__all__ = ["Lookup", "Record"]


@dataclass(eq=False)
class Lookup:
    """
    One call of an embedding, and the hook that takes the gradient at its output. Until a gradient comes only the graph
    keeps it, so a forward that is dropped leaves nothing.

    :param record: the pass that it belongs to.
    :param number: which lookup of its forward it is; in another forward of the pass the same number is the same place.
    :param table: the embedding.
    :param asked: what it was asked for, ids of any shape.
    :param copies: how many copies of the batch it was asked for.
    :param trained: False for what a forward that trains looks up without gradients.
    :param rows: which examples of a copy are perturbed; ``None`` for all.
    """

    record: Record
    number: int
    table: InitVar[nn.Embedding]
    asked: Tensor
    copies: int = 1
    trained: bool = True
    rows: Tensor | None = None
    #: of shape ``(*ids, features)``, the sum over the copies, with respect to the row before any scaling
    grad: Tensor | None = field(default=None, init=False)

    def __post_init__(self, table: nn.Embedding) -> None:
        one = self.asked if self.copies == 1 else self.asked[: len(self.asked) // self.copies]
        #: those of the perturbed examples of one copy, of shape ``(examples, ...)``
        self.ids = one if self.rows is None else one.index_select(0, self.rows)
        self.padding_idx: int | None = table.padding_idx
        self.scale_grad_by_freq: bool = table.scale_grad_by_freq

    def __call__(self, grad: Tensor) -> None:
        """Take a gradient in a backward pass."""
        self.receive(grad.detach())

    def receive(self, grad: Tensor) -> None:
        """Take a gradient; a second backward pass through the same graph adds to the first."""
        if (self.copies > 1 or self.rows is not None) and len(grad) != len(self.ids):
            grad = self.by_copy(grad)
            grad = grad if self.rows is None else grad.index_select(1, self.rows)
            grad = grad.sum(0) if self.copies > 1 else grad[0]
        if self.grad is None:
            self.grad = grad
            self.record.received.append(self)
        else:
            self.grad = self.grad + grad

    def by_copy(self, x: Tensor) -> Tensor:
        """Return a view of shape ``(copies, examples, ...)``."""
        return x.view(self.copies, len(x) // self.copies, *x.shape[1:])

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
        #: those that the graph keeps
        self.alive: WeakSet[Lookup] = WeakSet()
        #: those that a gradient came to
        self.received: list[Lookup] = []

    def number(self, tap: object, forward: Forward | None) -> int:
        """
        Number a lookup, by the order in which the places of the pass first came; what no announced forward holds is
        counted by itself, since it need not belong to the examples of those that are.
        """
        if forward is None:
            place = (False, self._unannounced)
            self._unannounced += 1
        else:
            place = (True, forward.lookups.get(id(tap), 0))
            forward.lookups[id(tap)] = place[1] + 1
            self._from_start = self._from_start or not self._numbers
        return self._numbers.setdefault(place, len(self._numbers))

    def by_number(self) -> tuple[dict[int, list[Lookup]], int]:
        """
        Return the lookups that a gradient came to, by their number in a forward, and how many numbers there were. Where
        the beginning of the pass is not known, the first with a gradient is number 0.
        """
        first = 0 if self._from_start else min(lookup.number for lookup in self.received)
        found: dict[int, list[Lookup]] = {}
        for lookup in self.received:
            found.setdefault(lookup.number - first, []).append(lookup)
        return dict(sorted(found.items())), len(self._numbers) - first

    def of(self, ids: Tensor) -> list[Lookup]:
        """Return the lookups that a checkpoint, which runs its forward again, may be about to make again with ids."""
        alive = list(self.alive)
        return [v for v in alive if v.asked.shape == ids.shape and v.asked.data_ptr() == ids.data_ptr()] or alive
