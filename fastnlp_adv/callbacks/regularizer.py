"""Callbacks that add a term to the loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

from ..regularizers import Regularizer
from .base import MethodCallback

__all__ = ["RegularizerCallback"]


class RegularizerCallback(MethodCallback):
    """
    Trains with a regularizer. Different ones combine, with each other and with an attack.

    :param start: see :class:`MethodCallback`.
    :param every: see :class:`MethodCallback`.
    :param log_every: see :class:`MethodCallback`.
    :param arguments: those of the regularizer.
    """

    method_class: ClassVar[type[Regularizer]]

    def on_after_optimizers_step(self, trainer: Any, optimizers: Any) -> None:
        self.method_.after_step()

    def regularize(
        self, objective: Callable[[Any], Any], forward: Callable[[Any], Any], due: bool, no_sync: Callable
    ) -> Callable[[Any], Any]:
        """
        The objective with this term in it.

        :param objective: the objective so far.
        :param forward: the bare training step.
        :param due: whether the term is due.
        :param no_sync: gives a context in which distributed training does not take part.
        :return: the new objective.
        """
        if not due:
            return objective

        def regularized(batch: Any) -> Any:
            last = _LastSynchronizes(self.method_.forwards, no_sync)
            return self.method_(last.wrap(objective), batch, last.wrap(forward))

        return regularized


class _LastSynchronizes:
    """Keeps all forward passes but the last out of distributed training, which expects one a backward pass."""

    def __init__(self, forwards: int, no_sync: Callable):
        self._left = forwards
        self._no_sync = no_sync

    def wrap(self, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(batch: Any) -> Any:
            self._left -= 1
            with self._no_sync() if self._left > 0 else nullcontext():
                return forward(batch)

        return counted
