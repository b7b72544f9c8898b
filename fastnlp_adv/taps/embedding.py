"""The tap on the outputs of lookups."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import forwards
from ..functional import group_norm
from .base import Delta, Tap
from .find import Embedding, lookup_of, scale_of
from .lookup import Lookup, Record
from .perturbation import Perturbation, perturbation_for

__all__ = ["EmbeddingTap"]


class EmbeddingTap(Tap):
    r"""
    Watches the lookups of one embedding and adds a perturbation to their outputs. The weight is never written: for the
    loss, moving the rows and moving what is looked up is the same, :math:`(W + R)[ids] = W[ids] + R[ids]`.

    All forwards of a pass see the same perturbation of an example, and so do the copies in a doubled batch; its
    gradient is the sum over all of them.

    :param embedding: the embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    """

    #: for methods whose first pass is not clean, what it adds to a lookup, given the lookup and its output; for
    #: ``"sequence"`` and ``"token"``, and until the next reset
    start: Callable[[Lookup, Tensor], Tensor] | None = None
    #: whether passes with different perturbations end in one backward pass, where a checkpoint cannot tell them apart
    mixes_passes = False

    def __init__(self, embedding: Embedding, granularity: str):
        super().__init__()
        self.name = embedding.name
        self._embedding = embedding
        self._per_position = granularity != "vocab"
        self._granularity = granularity
        self.reset()

    def describe(self) -> str:
        shape = " x ".join(map(str, self._embedding.weight.shape))
        return f"`{self.name}` ({shape}, rows {self.row_length():.3g} long on average)"

    def row_length(self) -> float:
        """Return the mean l2 norm of the rows; it reads the whole weight, and waits for the device."""
        return group_norm(self._embedding.weight.detach(), dims=(1,)).mean().item()

    def _install(self) -> list[RemovableHandle]:
        hook = (_uncompiled_hook() if "torch._dynamo" in sys.modules else _Hook)(self)
        return [m.register_forward_hook(hook, with_kwargs=True) for m in self._embedding.modules]

    def reset(self) -> None:
        self._perturbation: Perturbation | None = None
        self.start = None
        self.begin_pass(keep_leaves=False)
        self._begun = False
        self._record = Record()

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self._keep_leaves = keep_leaves
        self._leaves: list[tuple[Tensor, Lookup]] = []
        self._starts: dict[int, Tensor] = {}
        self._watching = False  # whether this pass looked up with gradients on
        self._begun = True  # whether somebody said so
        self._record = Record(from_start=True)
        self._last: Record | None = None  # the one that the last backward pass went through

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf, _ in self._leaves]

    def receive(self, grads: Sequence[Tensor | None]) -> None:
        for (_, lookup), grad in zip(self._leaves, grads):
            if grad is not None:
                lookup.receive(grad)
        if self._record.reached:
            self._last, self.seen = self._record, True

    @property
    def looked_up(self) -> bool:
        """Whether this pass came to the embedding so far, with gradients on."""
        return self._watching

    @property
    def reached(self) -> bool:
        return self._last is not None

    @property
    def received(self) -> list[Lookup]:
        """The lookups that a gradient came to in the last pass."""
        return [] if self._last is None else [each for lookups in self._last.received()[0].values() for each in lookups]

    def deltas(self) -> list[Delta]:
        lookups, total = ({}, 0) if self._last is None else self._last.received()
        if self._last is None and not (self._begun and self._perturbation is not None):
            self._check_elsewhere()
            return []
        if self._perturbation is None:
            self._perturbation = perturbation_for(self._granularity, lookups, total, self._starts)
        return self._perturbation.deltas(lookups)

    def perturb(self, values: Sequence[Tensor]) -> None:
        if self._perturbation is not None:
            self._perturbation.set(values)
        self.begin_pass(keep_leaves=False)
        self._begun = False

    def _check_elsewhere(self) -> None:
        """Refuse a pass without a gradient, unless it is one of a training in which some batches go elsewhere."""
        if not self._handles:
            raise RuntimeError(
                f"Expected an open attack on embedding `{self.name}`, but it is closed. Call `open()` first."
            )
        if (self._watching or self._perturbation is not None) and not (self.seen and self._begun):
            raise RuntimeError(
                f"Expected a backward pass through the lookups of embedding `{self.name}` before the attack, but got "
                "none. Call `loss.backward()` first, on a loss that depends on the embedding."
            )
        if not self.seen:
            raise RuntimeError(
                f"Expected the forward pass to look up embedding `{self.name}`, but it never did (with gradients on). "
                "Give the model ids rather than `inputs_embeds`, or name the embedding that is looked up with "
                "`emb_name`; turn reentrant gradient checkpointing off (`use_reentrant=False`) where it spans the "
                "embedding; call `torch.compiler.reset()` if the model was compiled and run before the attack was "
                "built."
            )

    def on_lookup(self, module: nn.Module, ids: Tensor, output: Tensor) -> Tensor:
        """
        Watch a lookup and perturb it.

        :param module: the module that was called.
        :param ids: what it was called with.
        :param output: what it returned.
        :return: what it is to return.
        """
        if not any(module is own for own in self._embedding.modules):  # a copy of the model took the hook along
            return output
        module = lookup_of(module)
        again = torch._C._current_graph_task_id() != -1  # a checkpoint runs its forward again, in the backward pass
        lookup = self._made_before(ids) if again else self._count(module, ids)
        delta = self._delta(lookup, ids, output)
        scale = scale_of(module)
        if not torch.is_grad_enabled():
            return _added(output, delta, scale, lookup)
        self._watching = self._watching or not again
        watched = output
        if self._keep_leaves or not _is_bare(output):
            watched = delta = (_zeros(output, lookup) if delta is None else delta).detach().requires_grad_()
        if lookup is not None and not again:
            self._record.add(lookup)
            if self._keep_leaves:
                self._leaves.append((watched, lookup))
            else:
                watched.register_hook(lookup)
        return _added(output, delta, scale, lookup)

    def _count(self, module: nn.Embedding, ids: Tensor) -> Lookup | None:
        """Return a lookup of this pass; ``None`` where, without gradients, nobody said what it belongs to."""
        forward = forwards.current()
        if forward is None and not torch.is_grad_enabled():
            return None
        if self._record.reached:  # gradients have come to it, so this is a new one
            self._record = Record()
        number = self._record.next_number(self, forward)
        copies = 1
        if self._per_position and forward is not None and forward.rows is not None and ids.dim():
            copies = forward.copies if len(ids) == forward.copies * forward.rows else 1
        lookup = Lookup(self._noted, self._record, number, module, ids, copies)
        lookup.trained = torch.is_grad_enabled() or (forward is not None and not forward.trains)
        return lookup

    def _noted(self, lookup: Lookup) -> None:
        lookup.record.note(lookup)
        self._last, self.seen = lookup.record, True

    def _made_before(self, ids: Tensor) -> Lookup | None:
        if self.mixes_passes:
            raise RuntimeError(
                f"Expected gradient checkpointing to leave out embedding `{self.name}`, since a clean and a perturbed "
                "pass end in one backward pass, but got a lookup inside. Look up outside the checkpointed function."
            )
        if not self._per_position or (self._perturbation is None and self.start is None):
            return None
        same = self._record.of(ids)
        if len({lookup.number for lookup in same}) != 1:
            raise RuntimeError(
                f"Expected each lookup of embedding `{self.name}` inside gradient checkpointing to be known by its "
                f"ids, but got {len(same)} that may be the one. Use `granularity='vocab'`, or look up outside the "
                "checkpointed function."
            )
        return same[0]

    def _delta(self, lookup: Lookup | None, ids: Tensor, output: Tensor) -> Tensor | None:
        delta = None
        if self._perturbation is not None:
            number, ids = (None, ids) if lookup is None else (lookup.number, lookup.ids)
            delta = self._perturbation.at(number, ids)
        elif self.start is not None and lookup is not None and lookup.trained:
            if lookup.number not in self._starts:
                one = output if lookup.copies == 1 else lookup.by_copy(output)[0]
                self._starts[lookup.number] = self.start(lookup, one.detach())
            delta = self._starts[lookup.number]
        return None if delta is None else delta.to(output.dtype)


class _Hook:
    """The forward hook. A model that is pickled or copied with it gets one that does nothing: taps are not shared."""

    def __init__(self, tap: EmbeddingTap | None = None):
        self._tap = tap

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if self._tap is None:
            return output
        return self._tap.on_lookup(module, args[0] if args else next(iter(kwargs.values())), output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


@functools.lru_cache(maxsize=None)
def _uncompiled_hook() -> type[_Hook]:
    """Return a hook at which a compiled model breaks its graph, for what changes from pass to pass."""
    return type("_UncompiledHook", (_Hook,), {"__call__": torch.compiler.disable(_Hook.__call__)})


def _is_bare(output: Tensor) -> bool:
    """
    Whether a lookup can be watched without an operation. Only a backward pass to the weight comes to what the lookup
    itself gave; to what was made of it, also one that ends at the leaf of another tap.
    """
    return type(output.grad_fn).__name__ == "EmbeddingBackward0"


def _zeros(output: Tensor, lookup: Lookup | None) -> Tensor:
    return torch.zeros_like(output if lookup is None or lookup.copies == 1 else output[: len(lookup.ids)])


def _added(output: Tensor, delta: Tensor | None, scale: Tensor | float, lookup: Lookup | None) -> Tensor:
    if delta is None:
        return output
    if isinstance(scale, Tensor) or scale != 1:  # whether a tensor is 1 the device would have to tell
        delta = delta * scale
    if len(delta) == len(output) or lookup is None:
        return output + delta
    return (lookup.by_copy(output) + delta).flatten(0, 1)  # the copies share it, and their gradients add up
