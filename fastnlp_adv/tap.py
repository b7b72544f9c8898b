"""Taps: where an attack reads gradients and puts perturbations.

:class:`EmbeddingTap` sits on the outputs of lookups and writes nothing. :class:`WeightTap` is for parameters that are not
looked up and perturbs them in place. Both are driven alike: ``begin_pass``, a forward and a backward pass, ``gradients``,
``perturb``; ``reset`` takes the perturbation off.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .embedding import Embedding, scale_of
from .perturbation import Lookup, Perturbation, perturbation_for

__all__ = ["EmbeddingTap", "Tap", "WeightTap"]

NOT_A_POSITION = -1  # a lookup without gradients has no perturbation of its own, but its tokens may have one


class Tap(ABC):
    """What attacks need of a place that can be perturbed."""

    name: str

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self.leaves: list[Tensor] = []  # what a gradient-only pass differentiates with respect to

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
    def values(self) -> list[tuple[Tensor, tuple[int, ...], Tensor | None]]:
        """The free variables of the perturbation, the dimensions of their groups, and which elements are free."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """The gradients of the free variables in the last pass."""

    @abstractmethod
    def perturb(self, values: list[Tensor]) -> None:
        """Perturb by these values from here on."""

    @abstractmethod
    def reset(self) -> None:
        """Take the perturbation off and forget the pass."""


class EmbeddingTap(Tap):
    r"""
    Watches the lookups of one embedding and adds a perturbation to their outputs.

    :param embedding: the embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    """

    def __init__(self, embedding: Embedding, granularity: str):
        super().__init__()
        self.name = embedding.name
        self._embedding = embedding
        self._granularity = granularity
        self._keep_leaves = False
        self.reset()

    def _install(self) -> list[RemovableHandle]:
        hook = self._on_lookup
        if "torch._dynamo" in sys.modules:  # a compiled model breaks its graph here, for what changes from pass to pass
            hook = torch.compiler.disable(hook)
        return [m.register_forward_hook(hook, with_kwargs=True) for m in self._embedding.modules]

    def reset(self) -> None:
        self.perturbation: Perturbation | None = None
        self.begin_pass(keep_leaves=False)

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self._keep_leaves = keep_leaves
        self.leaves = []
        self._lookups: dict[int, Lookup] = {}
        self._seen: list[Tensor] = []

    def values(self) -> list[tuple[Tensor, tuple[int, ...], Tensor | None]]:
        if self.perturbation is None:
            self.perturbation = perturbation_for(self._granularity, self._received())
        p = self.perturbation
        return [(value, p.dims(value), real) for value, real in zip(p.values, p.real())]

    def gradients(self) -> list[Tensor]:
        lookups = self._received()
        if self.perturbation is None:
            self.perturbation = perturbation_for(self._granularity, lookups)
        return self.perturbation.collect(lookups)

    def perturb(self, values: list[Tensor]) -> None:
        assert self.perturbation is not None
        self.perturbation.values = values
        self.begin_pass(keep_leaves=False)

    def _received(self) -> dict[int, Lookup]:
        if not self._lookups:
            raise RuntimeError(self._nothing_received())
        return dict(sorted(self._lookups.items()))

    def _nothing_received(self) -> str:
        if self._seen:
            return (
                f"Expected a backward pass through the lookups of embedding `{self.name}` before the attack, but got none. "
                "Call `loss.backward()` first, on a loss that depends on the embedding."
            )
        return (
            f"Expected the forward pass to look up embedding `{self.name}`, but it never did (with gradients on). "
            "Give the model ids rather than `inputs_embeds`, or name the embedding that is looked up with `emb_name`; "
            "turn reentrant gradient checkpointing off (`use_reentrant=False`) where it spans the embedding; call "
            "`torch.compiler.reset()` if the model was compiled and run before the attack was built."
        )

    def _on_lookup(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        ids = args[0] if args else kwargs["input"]
        if torch._C._current_graph_task_id() != -1:  # a checkpoint runs its forward again, in the backward pass
            return self._again(module, ids, output)
        if not torch.is_grad_enabled():
            return output + self._delta(NOT_A_POSITION, ids, output) * scale_of(module) if self.perturbation else output
        if self._lookups and not self.perturbation:  # a new forward pass; the gradients that came are of an earlier one
            self.begin_pass(keep_leaves=self._keep_leaves)
        index = len(self._seen)
        self._seen.append(ids)
        leaf = self._delta(index, ids, output).detach().requires_grad_()
        leaf.register_hook(partial(self._receive, index, module, ids))
        if self._keep_leaves:
            self.leaves.append(leaf)
        return output + leaf * scale_of(module)

    def _delta(self, index: int, ids: Tensor, output: Tensor) -> Tensor:
        delta = self.perturbation.at(index, ids) if self.perturbation else None
        return torch.zeros_like(output) if delta is None else delta.to(output.dtype)

    def _again(self, module: nn.Module, ids: Tensor, output: Tensor) -> Tensor:
        if self.perturbation is None:
            return output
        same = [i for i, seen in enumerate(self._seen) if seen.shape == ids.shape and seen.data_ptr() == ids.data_ptr()]
        index = same[0] if same else 0
        return output + self._delta(index, ids, output) * scale_of(module)

    def _receive(self, index: int, module: nn.Embedding, ids: Tensor, grad: Tensor) -> None:
        grad = grad.detach()
        if index in self._lookups:  # a second backward pass through the same graph
            self._lookups[index].grad = self._lookups[index].grad + grad
        else:
            self._lookups[index] = Lookup(ids, grad, module.padding_idx, module.scale_grad_by_freq)


class WeightTap(Tap):
    r"""
    Perturbs a parameter in place, with the gradient of this micro-batch alone, and puts it back bit for bit.

    :param name: the parameter's name.
    :param param: the parameter.
    """

    def __init__(self, name: str, param: nn.Parameter):
        super().__init__()
        self.name = name
        self._param = param
        self._value: Tensor | None = None
        self._backup: Tensor | None = None
        self._grad: Tensor | None = None

    def _install(self) -> list[RemovableHandle]:
        return [self._param.register_hook(self._receive)]

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self.leaves = [self._param] if keep_leaves else []
        self._grad = None

    def reset(self) -> None:
        if self._backup is not None:
            with torch.no_grad():
                self._param.copy_(self._backup)
        self._value = self._backup = None
        self.begin_pass(keep_leaves=False)

    def values(self) -> list[tuple[Tensor, tuple[int, ...], Tensor | None]]:
        value = torch.zeros_like(self._param) if self._value is None else self._value
        return [(value, tuple(range(value.dim())), None)]

    def gradients(self) -> list[Tensor]:
        if self._grad is None:
            raise RuntimeError(
                f"Expected a backward pass through parameter `{self.name}` before the attack, but got no gradient. "
                "Call `loss.backward()` first, on a loss that depends on it, or name another with `emb_name`."
            )
        return [self._grad]

    def perturb(self, values: list[Tensor]) -> None:
        if self._backup is None:
            self._backup = self._param.detach().clone()
        self._value = values[0]
        with torch.no_grad():
            self._param.copy_(self._backup + self._value)
        self.begin_pass(keep_leaves=False)

    def _receive(self, grad: Tensor) -> None:
        grad = grad.detach().to_dense()
        self._grad = grad.clone() if self._grad is None else self._grad + grad
