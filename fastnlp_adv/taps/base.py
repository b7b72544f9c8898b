"""What attacks and regularizers need of a place where they read gradients and put perturbations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..batch import Part

__all__ = ["Delta", "Tap", "described"]


def described(name: str, shape: Sequence[int], more: str = "") -> str:
    """
    Name a parameter and its shape.

    :param name: its name.
    :param shape: that of the parameter.
    :param more: what else is to stand behind the shape.

    Example::

        >>> described("words.weight", (100, 8), ", frozen")
        '`words.weight` (100 x 8, frozen)'
    """
    return f"`{name}` ({' x '.join(map(str, shape))}{more})"


@dataclass
class Delta:
    """
    A perturbation and the gradient that moves it: what one ascent step is made on.

    :param value: the perturbation now.
    :param grad: the gradient of the loss with respect to it, of the same shape.
    :param dims: the dimensions that share one norm.
    :param number: the number of the lookup in its forward; 0 where there is one perturbation for all lookups.
    :param find_free: computes ``free``, which few methods need.
    """

    value: Tensor
    grad: Tensor
    dims: tuple[int, ...]
    number: int = 0
    find_free: Callable[[], Tensor] | None = None

    @property
    def free(self) -> Tensor | None:
        """Which elements may move; padding may not. Broadcasts to ``value``; ``None`` for all."""
        return None if self.find_free is None else self.find_free()


class Tap(ABC):
    """
    A place that can be perturbed. Each pass is driven alike: ``begin_pass``, forward and backward, ``deltas``, an
    ascent step on each, ``perturb``; ``reset`` takes the perturbation off.
    """

    name: str
    #: what lengths are given in: 1, or the length of a row
    unit = 1.0
    #: True once any pass had a gradient here; a place that never has one is probably the wrong one
    had_grad = False

    @abstractmethod
    def describe(self) -> str:
        """Say what is perturbed: its name, its shape and, of an embedding, how long its rows are."""

    @abstractmethod
    def open(self) -> None:
        """Install the hooks; does nothing when they are installed."""

    @abstractmethod
    def close(self) -> None:
        """Take the perturbation and the hooks off."""

    @property
    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """What a gradient-only pass differentiates with respect to."""

    @abstractmethod
    def receive(self, grads: Sequence[Tensor | None]) -> None:
        """Set the gradients at ``leaves``; ``None`` where the loss does not depend on one."""

    @property
    @abstractmethod
    def has_grad(self) -> bool:
        """True if the last pass had a gradient here."""

    @abstractmethod
    def begin_pass(
        self, *, inner: bool = False, is_read: bool = True, part: Part | None = None, alone: bool = False
    ) -> None:
        """
        Forget the gradients of the last pass.

        :param inner: True if this one computes gradients at the taps only.
        :param is_read: False if its gradients at the taps are not read, which saves computing them.
        :param part: the attacked rows; ``None`` for all.
        :param alone: True if the pass runs on these rows only.
        """

    @abstractmethod
    def deltas(self) -> list[Delta]:
        """
        Return the perturbations with their gradients in the last pass; none if the batch had no gradient here, though
        others had.

        :raises RuntimeError: if no pass has ever had a gradient here.
        """

    @abstractmethod
    def perturb(self, values: Sequence[Tensor]) -> None:
        """Perturb by these values, one for each of :meth:`deltas`, from here on."""

    @abstractmethod
    def reset(self) -> None:
        """Take the perturbation off and forget the pass."""
