"""The tap on a parameter that is not looked up, and the block within which weights are moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Part
from ..random_state import Noise
from .embedding import Tap
from .find import described
from .perturbation import Delta

#: how many bits a number in single precision loses in half precision
_LOST = {torch.bfloat16: 16, torch.float16: 13}


@contextmanager
def moved_weights(weights: list[Tensor], backups: list[Tensor]) -> Iterator[None]:
    """Copy weights into ``backups``, and back, bit for bit, when the block ends; within it they may be written."""
    _write(backups, weights)
    try:
        yield
    finally:
        _write(weights, backups)


@torch.no_grad()
def _write(memory: list[Tensor], values: list[Tensor]) -> None:
    if memory:
        torch._foreach_copy_(memory, values)
    torch.clear_autocast_cache()  # an autocast around the step keeps the weights that it has cast


def widened(x: Tensor) -> Tensor:
    """Return the tensor itself to compute in, or empty memory in single precision if it is in half precision."""
    return torch.empty_like(x, dtype=torch.float32) if x.dtype in _LOST else x


def rounded_at_random(x: Tensor, dtype: torch.dtype, stream: Noise) -> Tensor:
    """Round numbers in place to some that half precision has, up or down so that the mean stays."""
    bits = _LOST[dtype]
    drawn = torch.randint(1 << bits, x.shape, dtype=torch.int32, device=x.device, generator=stream.on(x.device))
    x.view(torch.int32).add_(drawn).bitwise_and_(-1 << bits)
    return x


@contextmanager
def in_single_precision(model: nn.Module, values: dict[Tensor, Tensor]) -> Iterator[None]:
    """Let a model in half precision compute in single, at these values of parameters, which get the gradients."""
    wide: dict[Tensor, Tensor] = {}
    stores: list[dict[str, Any]] = [
        store for module in model.modules() for store in (module._parameters, module._buffers)
    ]
    before = [dict(store) for store in stores]
    flat: list[tuple[Any, list[Any]]] = [(m, m._flat_weights) for m in model.modules() if isinstance(m, nn.RNNBase)]
    try:
        for store in stores:
            for name, x in store.items():
                if x is not None and x.dtype in _LOST:
                    if x not in wide:
                        wide[x] = x.float()
                        if x in values:
                            wide[x] = wide[x] + (values[x] - wide[x].detach())
                    store[name] = wide[x]
        for module, weights in flat:
            module._flat_weights = [wide.get(weight, weight) for weight in weights]
        yield
    finally:
        for store, own in zip(stores, before, strict=True):
            store.update(own)
        for module, weights in flat:
            module._flat_weights = weights
        with torch.no_grad():
            for x, other in wide.items():
                if not isinstance(x, nn.Parameter):  # a buffer, which the pass may have written
                    x.copy_(other)


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
        if self._inner or not self._is_read:  # an inner pass gives its gradients to `receive`
            return
        grad = grad.detach().to_dense()
        backward, self._backward = self._backward, torch._C._current_graph_task_id()
        earlier = self.grad if backward == self._backward else None
        if earlier is not None:
            self.grad = earlier + grad
        else:
            self.grad = grad.clone() if self._copies else grad
