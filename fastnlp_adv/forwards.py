"""Which forward pass of the model is running: announced by whoever runs the model, read by taps and by R-Drop models.

One training pass over a batch may run the model several times: R-Drop twice, VAT, SMART and R3F once more. Only who
runs the model knows where one forward ends and the next begins, and that a doubled batch holds each example twice. Taps
need to know it, since all forwards of a pass share an example's perturbation. So it is announced here, and attacks and
regularizers need not know each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Forward", "announced", "one_batch", "run", "running"]


@dataclass
class Forward:
    """
    One forward of the model on the batch.

    :param copies: how many copies of the batch it holds, one after the other.
    :param rows: the number of examples of one copy, if there are several copies.
    :param bare: whether a model with R-Drop of its own runs once, because its caller has the say.
    :param last: whether no other forward of the pass comes after it, so that distributed training takes part in it.
    """

    copies: int = 1
    rows: int | None = None
    bare: bool = False
    last: bool = True
    #: whether gradients were on when it began; what it looks up without them, then, is not trained
    trains: bool = field(default_factory=torch.is_grad_enabled, init=False)
    #: how many lookups each tap has counted, by the tap's id
    lookups: dict[int, int] = field(default_factory=dict, init=False)


class _Running:
    """The innermost announced forward; ``None`` where nobody announced any, as in a plain training loop."""

    forward: Forward | None = None
    #: stands for the batch that is trained on, in all of its passes; ``None`` where no driver said so
    batch: object | None = None


running = _Running()


@contextmanager
def one_batch() -> Iterator[object]:
    """Announce that all passes until the end of the block are over one batch."""
    outer = running.batch
    running.batch = outer or object()
    try:
        yield running.batch
    finally:
        running.batch = outer


@contextmanager
def announced(*, copies: int = 1, rows: int | None = None, bare: bool = False, last: bool = True) -> Iterator[None]:
    """
    Announce a forward of the model on the batch.

    :param copies: see :class:`Forward`.
    :param rows: see :class:`Forward`.
    :param bare: see :class:`Forward`; holds for what is announced inside as well.
    :param last: see :class:`Forward`; what is announced inside one that is not the last is not the last either.

    Example::

        >>> with announced(copies=2, rows=4):
        ...     running.forward.copies
        2
        >>> running.forward is None
        True
    """
    outer = running.forward
    if outer is not None:
        bare, last = bare or outer.bare, last and outer.last
    running.forward = Forward(copies, rows, bare, last)
    try:
        yield
    finally:
        running.forward = outer


def run(step: Callable[[Any], Any], batch: Any, **announcement: Any) -> Any:
    """
    Run a training step as an announced forward, on a shallow copy of the batch, from which it may take fields out.

    :param step: takes the batch.
    :param batch: the batch; what is no mapping is not copied.
    :param announcement: see :func:`announced`.
    :return: what ``step`` returns.

    Example::

        >>> batch = {"ids": [1, 2]}
        >>> run(lambda batch: batch.pop("ids"), batch), batch
        ([1, 2], {'ids': [1, 2]})
    """
    with announced(**announcement):
        return step(copy.copy(batch) if isinstance(batch, Mapping) else batch)
