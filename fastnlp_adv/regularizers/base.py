"""What all regularizers share: they wrap an objective, and their arguments are checked early."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..checks import check_arguments

__all__ = ["Forward", "Regularizer"]

#: takes a batch, returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or ``logits``)
Forward = Callable[[Any], Any]


class Regularizer(ABC):
    """
    An extra term of the loss. Calling it runs the model and returns the outputs with that term in ``loss``.

    Regularizers are nested: each takes the one inside it for its ``objective``, and the bare training step as
    ``forward`` for the passes that it needs besides. One that changes the clean pass itself, as R-Drop does, is
    innermost.
    """

    #: under which name the outputs hold the term, unweighted and detached
    name: str
    #: whether it is nested inside the others
    innermost = False

    @property
    @abstractmethod
    def forwards(self) -> int:
        """How many forward passes a call makes, that of the objective included."""

    @abstractmethod
    def __call__(self, objective: Forward, batch: Any, forward: Forward | None = None) -> dict[str, Any]:
        """
        Run the model and add the term.

        :param objective: gives the outputs of the clean pass, other terms included.
        :param batch: what both functions take.
        :param forward: the bare training step; ``objective`` if ``None``.
        :return: the outputs as a dict.
        """

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """
        Check the arguments alone, without a model.

        :param arguments: those of the constructor, but for the model.
        :raises ValueError: if one is out of range.
        """
        check_arguments(arguments)

    def open(self) -> None:  # noqa: B027 - nothing to do without hooks, here and below without state
        """Put hooks on the model, where there are any."""

    def close(self) -> None:  # noqa: B027
        """Take them off."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """The passes of one step; whatever happens in between, the model is left as it was."""
        yield

    def after_step(self) -> None:  # noqa: B027
        """Called after each step of the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on where :meth:`state_dict` was taken."""
