"""Which lookups happened in a forward pass, and which of them a backward pass came to."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

from torch import Tensor, nn

from .perturbation import Lookup

__all__ = ["Forward", "Visit"]


class Forward:
    """
    The lookups of one or more forward passes up to a backward pass.

    :param numbered_from_0: whether it is known that the first lookup is the first of the pass.
    """

    def __init__(self, *, numbered_from_0: bool = False):
        self._numbered_from_0 = numbered_from_0
        self.count = 0
        self.alive: WeakValueDictionary[int, Visit] = WeakValueDictionary()
        self.lookups: dict[int, Lookup] = {}

    def in_order(self) -> tuple[dict[int, Lookup], int]:
        """
        The lookups that a gradient came to, by number, and how many there were. In a plain loop nobody says where the
        pass begins, and a forward pass without a backward one may have come before: then the first lookup with a
        gradient is number 0.
        """
        first = 0 if self._numbered_from_0 else min(self.lookups)
        return {index - first: lookup for index, lookup in sorted(self.lookups.items())}, self.count - first


class Visit:
    """
    The hook at the output of a lookup. Only the graph keeps it, so a forward pass that is dropped leaves nothing.

    :param receive: called with the visit and the gradient that a backward pass brings to it.
    :param forward: where it belongs.
    :param index: its number there.
    :param module: the module that was asked.
    :param ids: what it was asked for.
    """

    def __init__(
        self, receive: Callable[[Visit, Tensor], None], forward: Forward, index: int, module: nn.Embedding, ids: Tensor
    ):
        self._receive = receive
        self.forward = forward
        self.index = index
        self.module = module
        self.ids = ids
        self.start: Tensor | None = None
        forward.alive[index] = self

    def lookup(self, grad: Tensor) -> Lookup:
        """The lookup, given the gradient that came to it."""
        return Lookup(self.ids, grad, self.module.padding_idx, self.module.scale_grad_by_freq, self.start)

    def __call__(self, grad: Tensor) -> None:
        self._receive(self, grad.detach())
