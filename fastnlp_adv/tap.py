"""What attacks need of a place where they read gradients and put perturbations.

:class:`~fastnlp_adv.embedding_tap.EmbeddingTap` sits on the outputs of lookups and writes nothing.
:class:`~fastnlp_adv.weight_tap.WeightTap` is for parameters that are not looked up. Both are driven alike:
``begin_pass``, a forward and a backward pass, ``gradients``, ``perturb``; ``reset`` takes the perturbation off.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.utils.hooks import RemovableHandle

__all__ = ["Tap"]


class Tap(ABC):
    """What attacks need of a place that can be perturbed."""

    name: str

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self.leaves: list[Tensor] = []  # what a gradient-only pass differentiates with respect to

    @property
    def is_open(self) -> bool:
        """Whether the hooks are there."""
        return bool(self._handles)

    def open(self) -> None:
        """Install the hooks; does nothing when they are there."""
        if not self._handles:
            self._handles = self._install()

    def close(self) -> None:
        """Take the perturbation and the hooks off."""
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @abstractmethod
    def _install(self) -> list[RemovableHandle]: ...

    @abstractmethod
    def begin_pass(self, *, keep_leaves: bool) -> None:
        """Forget the gradients of the last pass; ``keep_leaves`` when this one ends in a gradient at the taps alone."""

    @abstractmethod
    def values(self) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The free variables of the perturbation, and the dimensions of their groups."""

    @abstractmethod
    def free(self) -> list[Tensor | None]:
        """Which elements of the free variables may move; ``None`` for all."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """The gradients of the free variables in the last pass."""

    @abstractmethod
    def perturb(self, values: list[Tensor]) -> None:
        """Perturb by these values from here on."""

    @abstractmethod
    def reset(self) -> None:
        """Take the perturbation off and forget the pass."""
