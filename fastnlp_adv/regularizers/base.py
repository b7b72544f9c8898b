"""What all regularizers share: they wrap an objective and add a term to its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, ClassVar

from torch import Tensor

from ..method import Method

__all__ = ["Forward", "Regularizer", "add_term", "noting"]

#: takes a batch, returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or ``logits``)
Forward = Callable[[Any], Any]


class Regularizer(Method, ABC):
    """
    An extra term of the loss. Calling it runs the model and returns the outputs with that term in ``loss``.

    Regularizers are nested: each takes the one inside it for its ``objective``, and the bare training step as
    ``forward`` for the passes that it needs besides. One that changes the clean pass itself, as R-Drop does, is
    innermost.
    """

    #: under which name the outputs hold the term, unweighted and detached
    name: ClassVar[str]
    #: whether it is nested inside the others
    innermost: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, objective: Forward, batch: Any, forward: Forward | None = None) -> dict[str, Any]:
        """
        Run the model and add the term.

        :param objective: gives the outputs of the clean pass, other terms included.
        :param batch: what both functions take. Each of their calls gets a shallow copy of a mapping of its own.
        :param forward: the bare training step; ``objective`` if ``None``. A model with R-Drop of its own runs
            once in it.
        :return: the outputs as a dict.
        """

    def after_step(self) -> None:
        """Follow a step of the optimizer."""


# What is noted goes to whoever logs it. Only that is ours: a model may return something of its own under any name.
_listeners: list[dict[str, Tensor]] = []


@contextmanager
def noting() -> Iterator[dict[str, Tensor]]:
    """
    Collect what is noted.

    :return: the terms by name, filled as they come.

    Example::

        >>> import torch
        >>> with noting() as terms:
        ...     outputs = add_term({"loss": torch.tensor(1.0)}, "kl", 2.0, torch.tensor(0.5))
        >>> outputs["loss"], terms
        (tensor(2.), {'kl': tensor(0.5000)})
    """
    terms: dict[str, Tensor] = {}
    _listeners.append(terms)
    try:
        yield terms
    finally:
        _listeners.pop()


def add_term(outputs: dict[str, Any], name: str, weight: float, term: Tensor) -> dict[str, Any]:
    """
    Add a term to the loss of some outputs.

    :param outputs: a dict; its ``loss`` may be missing.
    :param name: the name of the term, under which it is noted, and added to the outputs unless the model itself
        uses it.
    :param weight: its weight.
    :param term: a tensor of no dimensions.
    :return: a new dict.
    """
    loss, unweighted = outputs.get("loss"), term.detach()
    loss = weight * term if loss is None else loss + weight * term
    if _listeners:
        _listeners[-1][name] = unweighted
    return {name: unweighted, **outputs, "loss": loss}
