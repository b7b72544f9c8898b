"""The tap on a parameter that is not looked up, and the block within which weights are moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..batch import Part
from .embedding import Tap
from .find import described
from .perturbation import Delta


@contextmanager
def moved_weights(weights: list[Tensor], backups: list[Tensor]) -> Iterator[None]:
    """Copy weights into ``backups``, and back, bit for bit, when the block ends; within it they may be written."""
    with torch.no_grad():
        torch._foreach_copy_(backups, weights)
    torch.clear_autocast_cache()  # an autocast around the step keeps the weights that it has cast
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, backups)
        torch.clear_autocast_cache()


class WeightTap(Tap):
    """
    Perturbs a parameter in place, with the gradient of the last backward pass only (``.grad`` may hold
    earlier micro-batches), and puts it back bit for bit.

    :param name: the parameter's name.
    :param param: the parameter.
    :param copies: False if the gradient is used before anything is added to ``.grad``, which may share its memory.
    """

    def __init__(self, name: str, param: nn.Parameter, *, copies: bool = True):
        self.name = name
        self.param = param
        self.handles = []
        self.grad: Tensor | None = None
        self._copies = copies
        self._value: Tensor | None = None
        self._backup: Tensor | None = None
        self._moved = ExitStack()
        self._inner, self._is_read = False, True
        self._backward = -1  # the backward pass that the gradient is of

    def describe(self) -> str:
        return described(self.name, self.param.shape)

    def open(self) -> None:
        if not self.handles and self.param.requires_grad:
            self.handles = [self.param.register_hook(self._on_gradient)]

    def close(self) -> None:
        super().close()
        self._backup = None

    @property
    def leaves(self) -> list[Tensor]:  # type: ignore[override]
        return [self.param] if self._inner and self.param.requires_grad else []

    def receive(self, grads: Sequence[Tensor | None]) -> None:
        for grad in grads:
            self.grad = None if grad is None else grad.detach().to_dense()
            self.had_grad = self.had_grad or self.has_grad

    @property
    def has_grad(self) -> bool:  # type: ignore[override]
        return self.grad is not None

    def begin_pass(
        self, *, inner: bool = False, is_read: bool = True, part: Part | None = None, alone: bool = False
    ) -> None:
        self._inner, self._is_read = inner, is_read
        self.grad = None

    def reset(self) -> None:
        self._moved.close()
        self._value = None
        self.begin_pass()

    def deltas(self) -> list[Delta]:
        if self.grad is None and not self.had_grad:
            raise RuntimeError(
                f"Expected a backward pass through parameter `{self.name}` before the attack, but got no gradient. "
                "Call `loss.backward()` first, on a loss that depends on it, or name another with `emb_name`."
            )
        if self.grad is None and self._value is None:
            return []
        value = torch.zeros_like(self.param) if self._value is None else self._value
        grad = torch.zeros_like(value) if self.grad is None else self.grad
        return [Delta(value, grad, tuple(range(grad.dim())))]

    def perturb(self, values: Sequence[Tensor]) -> None:
        for value in values:
            if self._value is None:
                self._moved.enter_context(moved_weights([self.param], [self.backup]))
            with torch.no_grad():
                torch.add(self.backup, value, out=self.param)
            torch.clear_autocast_cache()
            self._value = value
            self.begin_pass()

    @property
    def backup(self) -> Tensor:
        """Memory for the weight, kept until :meth:`close`; filled by :func:`moved_weights`."""
        old, param = self._backup, self.param
        if old is None or (old.shape, old.dtype, old.device) != (param.shape, param.dtype, param.device):
            self._backup = torch.empty_like(param, requires_grad=False)
        assert self._backup is not None
        return self._backup

    def _on_gradient(self, grad: Tensor) -> None:
        self.had_grad = True
        if self._inner or not self._is_read:  # an inner pass hands its gradients to `receive`
            return
        grad = grad.detach().to_dense()
        backward, self._backward = self._backward, torch._C._current_graph_task_id()
        earlier = self.grad if backward == self._backward else None
        if earlier is not None:
            self.grad = earlier + grad
        else:
            self.grad = grad.clone() if self._copies else grad
