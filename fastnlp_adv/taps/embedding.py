"""The tap on the outputs of lookups."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..batch import Part
from ..forwards import running
from ..functional import group_norm
from ..versions import compile_nothing_in
from .base import Delta, Tap, described
from .find import Embedding, lookup_of, scales
from .lookup import Lookup, Record
from .part import Order, rows_of
from .perturbation import Perturbation, perturbation_for
from .shards import is_shard

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
    #: the examples that are perturbed, until the next reset; ``None`` for all
    part: Part | None = None
    #: whether this pass runs on those examples alone
    alone = False

    def __init__(self, embedding: Embedding, granularity: str):
        self.name = embedding.name
        self._embedding = embedding
        self._granularity = granularity
        self._hooks = [_Hook(self, module) for module in embedding.modules]
        self._handles: list[RemovableHandle] = []
        self._perturbation: Perturbation | None = None
        self._order = Order(self.name)
        self._begin(Record(), begun=False)

    def describe(self) -> str:
        length = self.row_length()
        rows = "sharded" if length is None else f"rows {length:.3g} long on average"
        return described(self.name, self.shape, f", {rows}")

    @property
    def weight(self) -> Tensor:
        """The weight that is looked up; what this process has of it, where it is sharded."""
        return self._embedding.weight

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight, ``(rows, features)``."""
        return self._embedding.shape

    def row_length(self) -> float | None:
        """
        Return the mean l2 norm of the rows; it reads the whole weight, and waits for the device. ``None`` where the
        weight is sharded: all processes would have to ask at once.
        """
        if is_shard(self.weight) or self.weight.is_meta:
            return None
        return group_norm(self.weight.detach(), dims=(1,)).mean().item()

    def open(self) -> None:
        if self._handles:
            return
        if "torch._dynamo" in sys.modules and type(self._hooks[0]) is _Hook:
            # a compiled model breaks its graph at the hook, for what changes from pass to pass
            self._hooks = [hook.uncompiled() for hook in self._hooks]
        for hook in self._hooks:
            self._handles.append(hook.module.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def reset(self) -> None:
        # an attack that came before the backward pass fails and restores, and then the backward pass may come
        waits = self._perturbation is None and not self._begun and not self._record.received
        self._perturbation = None
        if self._order.asked:
            self._order.asked = None
        self.start = self.part = None
        self._begin(self._record if waits else Record(), begun=False)

    def begin_pass(self, *, keep_leaves: bool) -> None:
        self._begin(Record(from_start=True), keep_leaves=keep_leaves)

    def _begin(self, record: Record, *, keep_leaves: bool = False, begun: bool = True) -> None:
        self._keep_leaves = keep_leaves
        self._leaves: list[tuple[Tensor, Lookup]] = []
        self._starts: dict[int, Tensor] = {}
        self._begun = begun  # whether whoever drives the passes said so
        #: whether this pass came to the embedding so far, with gradients on
        self.looked_up = False
        self._record = record
        self._reached: Record | None = None  # the last one that a gradient came to, if it is another

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf, _ in self._leaves]

    def receive(self, grads: Sequence[Tensor | None]) -> None:
        for (_, lookup), grad in zip(self._leaves, grads, strict=True):
            if grad is not None:
                lookup.receive(grad)

    @property
    def reached(self) -> bool:
        return self._last() is not None

    @property
    def received(self) -> list[Lookup]:
        """The lookups that a gradient came to in the last pass."""
        last = self._last()
        return [] if last is None else last.received

    def _last(self) -> Record | None:
        last = self._record if self._record.received else self._reached
        self.seen = self.seen or last is not None
        return last

    def deltas(self) -> list[Delta]:
        last = self._last()
        if last is None:
            if not self._begun or self._perturbation is None:
                self._check_elsewhere()
                return []
            return self._perturbation.deltas({})
        lookups, total = last.by_number()
        if self._perturbation is None:
            self._perturbation = perturbation_for(self._granularity, lookups, total, self._starts)
        return self._perturbation.deltas(lookups)

    def perturb(self, values: Sequence[Tensor]) -> None:
        if self._perturbation is not None:
            self._perturbation.set(values)
        self._begin(Record(from_start=True), begun=False)

    def _check_elsewhere(self) -> None:
        """Refuse a pass without a gradient, unless it is one of a training in which some batches go elsewhere."""
        if not self._handles:
            raise RuntimeError(
                f"Expected an open attack on embedding `{self.name}`, but it is closed. Call `open()` first."
            )
        if (self.looked_up or self._perturbation is not None) and not (self.seen and self._begun):
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

    def on_lookup(self, table: nn.Embedding, ids: Tensor, output: Tensor, scale: Tensor | float) -> Tensor:
        """Watch a lookup, which scales its rows by ``scale``, and return its output with the perturbation."""
        trains = torch.is_grad_enabled()
        again = torch._C._current_graph_task_id() != -1  # a checkpoint runs its forward again, in the backward pass
        lookup = self._made_before(table, ids) if again else self._count(table, ids, trains)
        # where the output has other rows than the perturbation: several copies, or more examples
        other = lookup if lookup is not None and (lookup.copies > 1 or lookup.rows is not None) else None
        delta = self._delta(lookup, ids, output)
        # Without an operation only what the lookup itself gave can be watched: a backward pass to the weight comes to
        # it, and no other. To what was made of it, also one that ends at the leaf of another tap.
        if trains and (self._keep_leaves or type(output.grad_fn).__name__ != "EmbeddingBackward0"):
            if delta is None:
                delta = torch.zeros_like(output if other is None else output[: len(other.ids)])
            delta = delta.detach().requires_grad_()
        if trains and not again and lookup is not None:
            self.looked_up = True
            if self._keep_leaves and delta is not None:
                self._leaves.append((delta, lookup))
            else:
                (output if delta is None or not delta.requires_grad else delta).register_hook(lookup)
        if delta is None:
            return output
        if isinstance(scale, Tensor) or scale != 1:  # whether a tensor is 1 the device would have to tell
            delta = delta * scale
        if other is None:
            return output + delta
        by_copy = other.by_copy(output)  # the copies share it, and their gradients add up
        if other.rows is None:
            return (by_copy + delta).flatten(0, 1)
        delta = delta.to(output.dtype).expand(other.copies, *delta.shape)
        return by_copy.index_add(1, other.rows, delta).flatten(0, 1)

    def _count(self, table: nn.Embedding, ids: Tensor, trains: bool) -> Lookup | None:
        """Return a lookup of this pass; ``None`` where, without gradients, nobody said what it belongs to."""
        forward = running.forward
        if forward is None and not trains:
            return None if self.part is None else self._of_part(table, ids, copies=1)
        if self._record.received:  # gradients have come to it, so this is a new one
            self._record, self._reached = Record(), self._record
        copies, rows = 1, None
        if self.part is not None:
            copies = 1 if forward is None else forward.copies
            rows = rows_of(self.part, self.alone, ids, copies, self.name)
        elif forward is not None and forward.rows is not None and self._granularity != "vocab" and ids.dim():
            copies = forward.copies if len(ids) == forward.copies * forward.rows else 1
        trained = trains or (forward is not None and not forward.trains)
        lookup = Lookup(self._record, self._record.number(self, forward), table, ids, copies, trained, rows)
        self._record.alive.add(lookup)
        if self.part is not None:
            self._order.check(lookup)
        return lookup

    def _of_part(self, table: nn.Embedding, ids: Tensor, copies: int) -> Lookup:
        """Return a lookup that is perturbed, but not noted: it has no number."""
        assert self.part is not None
        rows = rows_of(self.part, self.alone, ids, copies, self.name)
        return Lookup(self._record, -1, table, ids, copies, rows=rows)

    def _made_before(self, table: nn.Embedding, ids: Tensor) -> Lookup | None:
        if self.mixes_passes:
            raise RuntimeError(
                f"Expected gradient checkpointing to leave out embedding `{self.name}`, since a clean and a perturbed "
                "pass end in one backward pass, but got a lookup inside. Look up outside the checkpointed function."
            )
        if self._granularity == "vocab" or (self._perturbation is None and self.start is None):
            # nobody says now how many copies there are, but when it was made before, they had a row for each example
            part = self.part
            if part is None:
                return None
            return self._of_part(table, ids, copies=len(ids) // (len(part) if self.alone else part.of))
        same = self._record.of(ids)
        if len({lookup.number for lookup in same}) != 1:
            raise RuntimeError(
                f"Expected each lookup of embedding `{self.name}` inside gradient checkpointing to be known by its "
                f"ids, but got {len(same)} that may be the one. Use `granularity='vocab'`, or look up outside the "
                "checkpointed function."
            )
        return same[0]

    def _delta(self, lookup: Lookup | None, ids: Tensor, output: Tensor) -> Tensor | None:
        if self._perturbation is not None:
            at = self._perturbation.at
            delta = at(None, ids) if lookup is None else at(lookup.number, lookup.ids)
            return None if delta is None else delta.to(output.dtype)
        if self.start is None or lookup is None or not lookup.trained:
            return None
        if lookup.number not in self._starts:
            one = output if lookup.copies == 1 else lookup.by_copy(output)[0]
            self._starts[lookup.number] = self.start(lookup, one.detach())
        return self._starts[lookup.number].to(output.dtype)


class _Hook:
    """The forward hook. A model that is pickled or copied with it gets one that does nothing: taps are not shared."""

    def __init__(self, tap: EmbeddingTap | None = None, module: Any = None):
        self._tap = tap
        self.module = module
        self._table = None if module is None else lookup_of(module)
        self._scales = module is not None and scales(module)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if module is not self.module or self._tap is None or self._table is None:
            return output
        ids = args[0] if args else next(iter(kwargs.values()))
        scale = getattr(self._table, "embed_scale", 1.0) if self._scales else 1.0
        return self._tap.on_lookup(self._table, ids, output, scale)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()

    def uncompiled(self) -> _Hook:
        """Return a hook at which a compiled model breaks its graph."""
        return _uncompiled_hook()(self._tap, self.module)


@functools.cache
def _uncompiled_hook() -> type[_Hook]:
    return type("_UncompiledHook", (_Hook,), {"__call__": compile_nothing_in(_Hook.__call__)})
