"""The dynamic scope of a training step: which batch is trained on, and which forward of the model is running.

One training pass over a batch may run the model several times: R-Drop twice, VAT, SMART and R3F once more. Only the
driver knows where one forward ends and the next begins, and that a doubled batch holds each example twice. Taps need to
know it, since all forwards of a pass share an example's perturbation. It is announced here, so that attacks and
regularizers need not know each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Batch:
    """The batch that is trained on, in all of its passes."""

    #: its fields, in some passes the attacked rows only; ``None`` where the driver does not know them
    data: Any = None


@dataclass
class Forward:
    """One forward of the model on the batch."""

    #: how many copies of the batch it holds, one after the other, and the examples of one copy if there are several
    copies: int = 1
    rows: int | None = None
    #: True if a model with R-Drop of its own runs once, because its caller runs R-Drop, or none
    bare: bool = False
    #: True if it is the last forward of its pass, in which distributed training takes part
    last: bool = True
    #: whether gradients were on when it began; lookups without them, then, are not trained
    trains: bool = field(default_factory=torch.is_grad_enabled, init=False)
    #: how many lookups each tap has counted, by the tap's id
    lookups: dict[int, int] = field(default_factory=dict, init=False)


@dataclass
class Scope:
    """Everything announced; ``None`` where no driver announced it, as in a plain training loop."""

    batch: Batch | None = None
    forward: Forward | None = None
    #: the inputs of the model's forward, by name, while it runs
    inputs: dict[str, Any] | None = None
    #: where the terms of losses are noted
    terms: dict[str, Tensor] | None = None
    #: by the id of a model with R-Drop of its own, the regularizer in its place; None for no R-Drop
    rdrop: dict[int, Any] = field(default_factory=dict)


#: the innermost scope. No ContextVar: checkpoints run forwards again in threads of autograd.
scope = Scope()


@contextmanager
def scoped(**values: Any) -> Iterator[None]:
    """Set attributes of the scope until the end of the block."""
    before = dict(vars(scope))
    vars(scope).update(values)
    try:
        yield
    finally:
        vars(scope).update(before)


@contextmanager
def announced(*, copies: int = 1, rows: int | None = None, bare: bool = False, last: bool = True) -> Iterator[None]:
    """
    Announce a forward of the model on the batch; see :class:`Forward`. Inside a bare forward all are bare, and inside
    one that is not the last none is.
    """
    outer = scope.forward
    if outer is not None:
        bare, last = bare or outer.bare, last and outer.last
    with scoped(forward=Forward(copies, rows, bare, last)):
        yield


def run(step: Callable[[Any], Any], batch: Any, **announcement: Any) -> Any:
    """Run a training step as an announced forward, on a shallow copy of a mapping, which it may take fields out of."""
    with announced(**announcement):
        return step(copy.copy(batch) if isinstance(batch, Mapping) else batch)
