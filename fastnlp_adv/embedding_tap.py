"""The tap on the outputs of lookups."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .embedding import Embedding, lookup_of, scale_of
from .perturbation import Lookup, Perturbation, perturbation_for
from .tap import Tap
from .visits import Forward, Visit

__all__ = ["EmbeddingTap"]

NOT_A_POSITION = -1  # a lookup without gradients has no perturbation of its own, but its tokens may have one


class EmbeddingTap(Tap):
    r"""
    Watches the lookups of one embedding and adds a perturbation to their outputs.

    :param embedding: the embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    """

    #: for methods whose first pass is not clean, what it adds to a lookup: a function of the number of the lookup, its
    #: ids, its output and where these are real tokens; for ``"sequence"`` and ``"token"``, and until the next reset
    start: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None
    #: whether passes with different perturbations end in one backward pass, where a checkpoint cannot tell them apart
    mixes_passes = False

    def __init__(self, embedding: Embedding, granularity: str):
        super().__init__()
        self.name = embedding.name
        self._embedding = embedding
        self._granularity = granularity
        self.reset()

    def _install(self) -> list[RemovableHandle]:
        hook = self._on_lookup
        if "torch._dynamo" in sys.modules:  # a compiled model breaks its graph here, for what changes from pass to pass
            hook = torch.compiler.disable(hook)
        return [m.register_forward_hook(hook, with_kwargs=True) for m in self._embedding.modules]

    def reset(self) -> None:
        self.perturbation: Perturbation | None = None
        self.start = None
        self.begin_pass(keep_leaves=False)
        self._forward = Forward()

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self._keep_leaves = keep_leaves
        self.leaves = []
        self._visits: list[Visit] = []  # those of the leaves
        self._forward = Forward(numbered_from_0=True)
        self._last: Forward | None = None  # the one that the last backward pass went through

    def values(self) -> list[tuple[Tensor, tuple[int, ...]]]:
        p = self._perturbation()
        return [(value, p.dims(value)) for value in p.values]

    def free(self) -> list[Tensor | None]:
        return [*self._perturbation().real()]

    def gradients(self) -> list[Tensor]:
        lookups, _ = self._received()
        return self._perturbation().collect(lookups)

    @property
    def looked_up(self) -> bool:
        """Whether this pass came to the embedding so far, with gradients on."""
        return self._forward.count > 0

    def lookups(self, grads: list[Tensor | None]) -> list[Lookup]:
        """The lookups of this pass, given the gradients at its ``leaves``, for methods that need their graph."""
        return [visit.lookup(g) for visit, g in zip(self._visits, grads, strict=True) if g is not None]

    def numbers(self) -> list[int]:
        """The numbers, as `start` got them, of the lookups that gradients came to in the last pass."""
        return list(self._received()[0])

    def perturb(self, values: list[Tensor]) -> None:
        self._perturbation().values = values
        self.begin_pass(keep_leaves=False)

    def _perturbation(self) -> Perturbation:
        if self.perturbation is None:
            self.perturbation = perturbation_for(self._granularity, *self._received())
        return self.perturbation

    def _received(self) -> tuple[dict[int, Lookup], int]:
        if self._last is None:
            raise RuntimeError(self._nothing_received())
        return self._last.in_order()

    def _nothing_received(self) -> str:
        if not self._handles:
            return f"Expected an open attack on embedding `{self.name}`, but it is closed. Call `open()` first."
        if self._forward.count:
            return (
                f"Expected a backward pass through the lookups of embedding `{self.name}` before the attack, but got "
                "none. Call `loss.backward()` first, on a loss that depends on the embedding."
            )
        return (
            f"Expected the forward pass to look up embedding `{self.name}`, but it never did (with gradients on). "
            "Give the model ids rather than `inputs_embeds`, or name the embedding that is looked up with `emb_name`; "
            "turn reentrant gradient checkpointing off (`use_reentrant=False`) where it spans the embedding; call "
            "`torch.compiler.reset()` if the model was compiled and run before the attack was built."
        )

    def _on_lookup(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not any(module is own for own in self._embedding.modules):  # a copy of the model took the hook along
            return output
        module = lookup_of(module)
        ids = args[0] if args else next(iter(kwargs.values()))
        scale = scale_of(module)
        if not torch.is_grad_enabled():
            return _added(output, self._delta(NOT_A_POSITION, ids, output), scale)
        again = torch._C._current_graph_task_id() != -1  # a checkpoint runs its forward again, in the backward pass
        index = self._index_again(ids) if again else self._next_index()
        visit = self._forward.alive.get(index) if again else Visit(self.receive, self._forward, index, module, ids)
        delta = self._delta(index, ids, output, visit)
        watched = output
        if self._keep_leaves or not _is_bare(output):
            watched = delta = (torch.zeros_like(output) if delta is None else delta).detach().requires_grad_()
        if not again:
            watched.register_hook(visit)
            if self._keep_leaves:
                self.leaves.append(watched)
                self._visits.append(visit)  # type: ignore[arg-type]
        return _added(output, delta, scale)

    def _next_index(self) -> int:
        if self._forward.lookups:  # gradients have come to it, so this is a new one
            self._forward = Forward()
        self._forward.count += 1
        return self._forward.count - 1

    def _index_again(self, ids: Tensor) -> int:
        if self.mixes_passes:
            raise RuntimeError(
                f"Expected gradient checkpointing to leave out embedding `{self.name}`, since a clean and a perturbed "
                "pass end in one backward pass, but got a lookup inside. Look up outside the checkpointed function."
            )
        if (self.perturbation is None and self.start is None) or self._granularity == "vocab":
            return NOT_A_POSITION
        visits = list(self._forward.alive.values())
        same = [v for v in visits if v.ids.shape == ids.shape and v.ids.data_ptr() == ids.data_ptr()] or visits
        if len(same) != 1:
            raise RuntimeError(
                f"Expected each lookup of embedding `{self.name}` inside gradient checkpointing to be known by its "
                f"ids, but got {len(same)} that may be the one. Use `granularity='vocab'`, or look up outside the "
                "checkpointed function."
            )
        return same[0].index

    def _delta(self, index: int, ids: Tensor, output: Tensor, visit: Visit | None = None) -> Tensor | None:
        delta = None
        if self.perturbation is not None:
            delta = self.perturbation.at(index, ids)
        elif self.start is not None and visit is not None and index >= 0:
            if visit.start is None:
                visit.start = self.start(index, ids, output.detach(), visit.lookup(output).real())
            delta = visit.start
        return None if delta is None else delta.to(output.dtype)

    def receive(self, visit: Visit, grad: Tensor) -> None:
        """Take the gradient that a backward pass brought to a lookup."""
        lookups = visit.forward.lookups
        if visit.index in lookups:  # a second backward pass through the same graph
            lookups[visit.index].grad = lookups[visit.index].grad + grad
        else:
            lookups[visit.index] = visit.lookup(grad)
        self._last = visit.forward


def _is_bare(output: Tensor) -> bool:
    """
    Whether a lookup can be watched without an operation. Only a backward pass to the weight comes to what the lookup
    itself gave; to what was made of it, also one that ends at the leaf of another tap.
    """
    return type(output.grad_fn).__name__ == "EmbeddingBackward0"


def _is_one(scale: Tensor | float) -> bool:
    return not isinstance(scale, Tensor) and scale == 1  # a tensor would have to tell the host


def _added(output: Tensor, delta: Tensor | None, scale: Tensor | float) -> Tensor:
    if delta is None:
        return output
    return output + (delta if _is_one(scale) else delta * scale)
