"""The tap on a parameter that is not looked up."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .tap import Tap

__all__ = ["WeightTap"]


class WeightTap(Tap):
    r"""
    Perturbs a parameter in place, with the gradient of the last backward pass alone (``.grad`` may hold those of
    earlier micro-batches), and puts it back bit for bit.

    :param name: the parameter's name.
    :param param: the parameter.
    """

    def __init__(self, name: str, param: nn.Parameter):
        super().__init__()
        self.name = name
        self.param = param
        self._value: Tensor | None = None
        self._backup: Tensor | None = None
        self._grad: Tensor | None = None
        self._backward = -1  # the backward pass that it came from

    def _install(self) -> list[RemovableHandle]:
        return [self.param.register_hook(self._receive)] if self.param.requires_grad else []

    @property
    def received(self) -> bool:
        """Whether the last pass brought a gradient."""
        return self._grad is not None

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self.leaves = [self.param] if keep_leaves and self.param.requires_grad else []
        self._grad = None

    def reset(self) -> None:
        if self._backup is not None:
            with torch.no_grad():
                self.param.copy_(self._backup)
            torch.clear_autocast_cache()  # an autocast around the step keeps what it has cast
        self._value = self._backup = None
        self.begin_pass(keep_leaves=False)

    def values(self) -> list[tuple[Tensor, tuple[int, ...]]]:
        value = torch.zeros_like(self.param) if self._value is None else self._value
        return [(value, tuple(range(value.dim())))]

    def free(self) -> list[Tensor | None]:
        return [None]

    def gradients(self) -> list[Tensor]:
        if self._grad is None:
            raise RuntimeError(
                f"Expected a backward pass through parameter `{self.name}` before the attack, but got no gradient. "
                "Call `loss.backward()` first, on a loss that depends on it, or name another with `emb_name`."
            )
        return [self._grad]

    def perturb(self, values: list[Tensor]) -> None:
        self.move(values[0])
        self._value = values[0]

    def move(self, by: Tensor) -> None:
        """Perturb by this value without keeping it, which saves its memory in a method that climbs once."""
        if self._backup is None:
            self._backup = self.param.detach().clone()
        with torch.no_grad():
            torch.add(self._backup, by, out=self.param)
        torch.clear_autocast_cache()
        self.begin_pass(keep_leaves=False)

    def _receive(self, grad: Tensor) -> None:
        grad = grad.detach().to_dense()
        backward, self._backward = self._backward, torch._C._current_graph_task_id()
        earlier = self._grad if backward == self._backward else None
        if earlier is not None:
            self._grad = earlier + grad
        else:  # what goes on to `.grad` may be added to there; what an inner pass computes goes nowhere else
            self._grad = grad if self.leaves else grad.clone()
