"""The tap on a parameter that is not looked up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..batch import Part
from .embedding import Tap
from .find import described
from .perturbation import Delta

__all__ = ["WeightTap"]


class WeightTap(Tap):
    r"""
    Perturbs a parameter in place, with the gradient of the last backward pass alone (``.grad`` may hold those of
    earlier micro-batches), and puts it back bit for bit.

    :param name: the parameter's name.
    :param param: the parameter.
    """

    def __init__(self, name: str, param: nn.Parameter):
        self.name = name
        self.param = param
        self.handles = []
        self._value: Tensor | None = None
        self._backup: Tensor | None = None
        self._grad: Tensor | None = None
        self._inner = False
        self._backward = -1  # the backward pass that it came from

    def describe(self) -> str:
        return described(self.name, self.param.shape)

    def open(self) -> None:
        if not self.handles and self.param.requires_grad:
            self.handles = [self.param.register_hook(self._on_gradient)]

    @property
    def leaves(self) -> list[Tensor]:  # type: ignore[override]
        return [self.param] if self._inner and self.param.requires_grad else []

    def receive(self, grads: Sequence[Tensor | None]) -> None:
        """Do nothing: the hook on the parameter has the gradient already."""

    @property
    def has_grad(self) -> bool:  # type: ignore[override]
        return self._grad is not None

    def begin_pass(
        self, *, inner: bool = False, is_read: bool = True, part: Part | None = None, alone: bool = False
    ) -> None:
        self._inner = inner
        self._grad = None

    def reset(self) -> None:
        if self._backup is not None:
            with torch.no_grad():
                self.param.copy_(self._backup)
            torch.clear_autocast_cache()  # an autocast around the step keeps what it has cast
        self._value = self._backup = None
        self.begin_pass()

    def deltas(self) -> list[Delta]:
        if self._grad is None and not self.had_grad:
            raise RuntimeError(
                f"Expected a backward pass through parameter `{self.name}` before the attack, but got no gradient. "
                "Call `loss.backward()` first, on a loss that depends on it, or name another with `emb_name`."
            )
        if self._grad is None and self._value is None:
            return []
        value = torch.zeros_like(self.param) if self._value is None else self._value
        grad = torch.zeros_like(value) if self._grad is None else self._grad
        return [Delta(value, grad, tuple(range(grad.dim())))]

    def perturb(self, values: Sequence[Tensor]) -> None:
        for value in values:
            self.move(value)
            self._value = value

    def move(self, by: Tensor) -> None:
        """Perturb by this value without keeping it, which saves its memory in a method of one ascent step."""
        if self._backup is None:
            self._backup = self.param.detach().clone()
        with torch.no_grad():
            torch.add(self._backup, by, out=self.param)
        torch.clear_autocast_cache()
        self.begin_pass()

    def _on_gradient(self, grad: Tensor) -> None:
        self.had_grad = True
        grad = grad.detach().to_dense()
        backward, self._backward = self._backward, torch._C._current_graph_task_id()
        earlier = self._grad if backward == self._backward else None
        if earlier is not None:
            self._grad = earlier + grad
        else:  # what goes on to `.grad` may be added to there; what an inner pass computes goes nowhere else
            self._grad = grad if self._inner else grad.clone()
