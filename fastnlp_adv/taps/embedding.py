"""Taps: where gradients are read and perturbations put; and the tap on the outputs of lookups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import forwards
from ..batch import Part
from ..versions import compile_nothing_in
from .find import Embedding, lookup_of, scales
from .layout import Layout, Mask, watch_inputs
from .perturbation import ByPosition, ByToken, Delta, Lookup, Perturbation, TapPass, one_copy


class Tap(ABC):
    """
    A place that can be perturbed. Each pass is driven alike: ``begin_pass``, forward and backward, ``deltas``, an
    ascent step on each, ``perturb``; ``reset`` takes the perturbation off.
    """

    name: str
    #: the unit of lengths: 1, or the length of a row
    unit = 1.0
    #: True once any pass had a gradient here; a place that never has one is probably the wrong one
    had_grad = False
    #: True if the last pass had a gradient here
    has_grad: bool
    #: the tensors that a gradient-only pass differentiates with respect to
    leaves: list[Tensor]
    #: the hooks that are on the model
    handles: list[RemovableHandle]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Keep the hooks on until the end of the block, which leaves the model unperturbed."""
        was_open = bool(self.handles)
        try:
            self.open()  # also on a parameter that was frozen when the others were put on
            yield
        finally:
            self.reset() if was_open else self.close()

    def close(self) -> None:
        """Take the perturbation and the hooks off."""
        self.reset()
        for handle in self.handles:
            handle.remove()
        self.handles = []

    @abstractmethod
    def open(self) -> None:
        """Put the hooks on, unless they are."""

    @abstractmethod
    def describe(self) -> str:
        """Return name and shape and, of an embedding, the length of its rows."""

    @abstractmethod
    def receive(self, grads: Sequence[Tensor | None]) -> None:
        """Set the gradients at ``leaves``; ``None`` where the loss does not depend on one."""

    @abstractmethod
    def begin_pass(
        self, *, inner: bool = False, is_read: bool = True, part: Part | None = None, alone: bool = False
    ) -> None:
        """Forget the gradients of the last pass. ``inner``: only gradients at the taps; else see :class:`TapPass`."""

    @abstractmethod
    def deltas(self) -> list[Delta]:
        """Return the perturbations with their gradients; none if the batch had none here. Raises if none ever had."""

    @abstractmethod
    def perturb(self, values: Sequence[Tensor]) -> None:
        """Perturb by these values, one for each of :meth:`deltas`, from here on."""

    @abstractmethod
    def reset(self) -> None:
        """Take the perturbation off and forget the pass."""


class EmbeddingTap(Tap):
    r"""
    Adds a leaf tensor to the output of each lookup of one embedding: the perturbation, or zeros. Autograd puts the
    gradient into the leaf. The weight is never written: for the loss, moving the rows and moving the outputs is the
    same, :math:`(W + R)[ids] = W[ids] + R[ids]`.

    All forwards of a pass, and the copies in a doubled batch, see the same perturbation, whose gradients are summed.

    :param embedding: the embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    :param model: the model, whose inputs tell which dimension of the ids holds the examples, and the mask.
    :param mask: see :class:`~fastnlp_adv.taps.layout.Layout`.
    """

    #: for methods whose first pass is not clean, until the next reset: returns the perturbation of a lookup, given the
    #: lookup and its output; for ``"sequence"`` and ``"token"``
    start: Callable[[Lookup, Tensor], Tensor] | None = None
    #: True if perturbations are of the rows, which some lookups scale; False if of the output
    of_rows = True
    #: True if clean and perturbed passes end in one backward pass, where a checkpoint cannot tell them apart
    mixes_passes = False

    def __init__(self, embedding: Embedding, granularity: str, model: nn.Module | None = None, mask: Mask = None):
        self.name = embedding.name
        self.embedding = embedding
        self._granularity = granularity
        self._hooks = [_Hook(self, module) for module in embedding.modules]
        self.handles = []
        self._perturbation: Perturbation | None = None
        self._pass = TapPass()
        self._model = model
        self._layout = Layout(self.name, mask)
        self._needs_layout = granularity != "vocab" or mask is not None
        self._call = self.on_lookup

    def describe(self) -> str:
        return self.embedding.describe(with_rows=True)

    def open(self) -> None:
        if self.handles:
            return
        if self._call == self.on_lookup:  # a compiled model breaks its graph here: perturbations change per pass
            self._call = compile_nothing_in(self.on_lookup)
        for hook in self._hooks:
            self.handles.append(hook.module.register_forward_hook(hook, with_kwargs=True))
        if self._needs_layout and self._model is not None:
            self.handles += watch_inputs(self._model)

    def reset(self) -> None:
        for lookup in self._pass.lookups:
            if lookup.leaf is not None:
                lookup.leaf.grad = None  # a gradient with a graph holds its leaf
        if self._pass.part is not None:
            self._layout.end_step()
        # `attack()` may be called too early; keep the lookups so that a later `backward()` counts.
        if self._perturbation is not None or self._pass.driven or self._pass.lookups:
            self._pass = TapPass()
        self._perturbation = self.start = None

    def begin_pass(
        self, *, inner: bool = False, is_read: bool = True, part: Part | None = None, alone: bool = False
    ) -> None:
        self._pass = TapPass(True, is_read, part, alone)

    @property
    def leaves(self) -> list[Tensor]:  # type: ignore[override]
        found = []
        for lookup in self._pass.lookups:
            if lookup.leaf is not None:
                found.append(lookup.leaf)
        return found

    def receive(self, grads: Sequence[Tensor | None]) -> None:
        for leaf, grad in zip(self.leaves, grads, strict=True):
            leaf.grad = grad

    @property
    def has_lookups(self) -> bool:
        """True if this pass has looked up the embedding, with gradients on."""
        return self._pass.has_lookups

    @property
    def has_grad(self) -> bool:  # type: ignore[override]
        return bool(self.lookups)

    @property
    def lookups(self) -> list[Lookup]:
        """The lookups of the last pass that have a gradient."""
        found = []
        last = self._pass if self._pass.lookups else self._pass.before or self._pass
        for lookup in last.lookups:
            if lookup.leaf is not None and lookup.leaf.grad is not None:
                found.append(lookup)
        self.had_grad = self.had_grad or bool(found)
        return found

    def deltas(self) -> list[Delta]:
        lookups = self.lookups
        if not lookups and (self._perturbation is None or not self._pass.driven):
            self._check_elsewhere()
            return []
        if self._perturbation is None and self._granularity == "vocab":
            self._perturbation = ByToken(lookups)
        elif self._perturbation is None:
            last = self._pass if self._pass.lookups else self._pass.before or self._pass
            total = last.count(lookups)
            self._perturbation = ByPosition(lookups, total, last.starts, per_token=self._granularity == "token")
        return self._perturbation.deltas(lookups)

    def perturb(self, values: Sequence[Tensor]) -> None:
        if self._perturbation is not None:
            self._perturbation.values = list(values)
        self._pass = TapPass()

    def on_lookup(self, table: nn.Embedding, ids: Tensor, output: Tensor, scale: Tensor | float) -> Tensor:
        """Return the output of a lookup plus the leaf, times ``scale`` if it is of the rows."""
        trains = torch.is_grad_enabled()
        repeated = torch._C._current_graph_task_id() != -1  # a checkpoint runs its forward again in the backward pass
        lookup = self._repeated(table, ids) if repeated else self._new_lookup(table, ids, trains)
        self._pass.has_repeats = self._pass.has_repeats or repeated
        delta = None
        if self._perturbation is not None:
            delta = self._perturbation.at(lookup)
        elif self.start is not None and lookup.trained and lookup.number >= 0:
            delta = self._start_of(self.start, lookup, output)
        if delta is not None:
            delta = delta.to(output.dtype)
        elif trains:  # zeros that take no memory
            delta = output.new_zeros(()).expand(*lookup.ids.shape, output.shape[-1])
        else:
            return output
        if trains and self._pass.is_read:
            delta = delta.detach().requires_grad_()
        if trains and not repeated:
            self._pass.has_lookups = True
            if self._pass.driven:
                lookup.leaf = delta
                self._pass.lookups.append(lookup)
            else:
                self._await(lookup, delta)
        if self.of_rows and (isinstance(scale, Tensor) or scale != 1):  # comparing a tensor would synchronize
            delta = (delta * scale).to(output.dtype)
        return lookup.add(output, delta)

    def _new_lookup(self, table: nn.Embedding, ids: Tensor, trains: bool) -> Lookup:
        forward = forwards.scope.forward
        numbered = trains or forward is not None
        if numbered and self._pass.lookups and not self._pass.driven:  # a backward pass came in between
            self._pass = TapPass(before=replace(self._pass, before=None))
        copies = 1 if forward is None else forward.copies
        all_ids, transposed = ids, False
        if self._needs_layout:
            by_example = self._granularity == "sequence" and self._pass.part is None
            transposed = self._layout.is_transposed(ids, copies, by_example=by_example)
            ids = ids.transpose(0, 1) if transposed else ids
        if copies > 1 and forward is not None and self._pass.part is None:
            is_doubled = ids.dim() and len(ids) == forward.copies * (forward.rows or 0)
            copies = copies if is_doubled and self._granularity != "vocab" else 1
        trained = trains or (forward is not None and not forward.trains)
        rows = None if self._pass.part is None else self._pass.attacked_rows(ids, copies, self.name)
        attacked = ids if copies == 1 and rows is None else one_copy(ids, copies, rows)
        lookup = Lookup(table, attacked, all_ids, copies, rows, transposed, trained=trained)
        if self._needs_layout:
            part = None if self._pass.part is None else self._pass.part.rows(ids.device)
            lookup.mask = self._layout.mask_of(attacked, copies, part, table.padding_idx)
        if numbered:
            self._pass.add_number(lookup, self, forward)
            if self._pass.part is not None:
                self._layout.check_order(lookup.number, lookup.ids)
        return lookup

    def _repeated(self, table: nn.Embedding, ids: Tensor) -> Lookup:
        if self.mixes_passes:
            raise RuntimeError(
                f"Expected gradient checkpointing to leave out embedding `{self.name}`, since a clean and a perturbed "
                "pass end in one backward pass, but got a lookup inside. Look up outside the checkpointed function."
            )
        by_position = self._granularity != "vocab" and (self._perturbation is not None or self.start is not None)
        return self._pass.repeated(table, ids, self.name, by_position=by_position)

    def _await(self, lookup: Lookup, leaf: Tensor) -> None:
        """Keep a lookup of a plain loop when its leaf has a gradient; until then only the graph holds that."""
        lookups = self._pass.lookups

        def keep(leaf: Tensor) -> None:
            handle.remove()  # otherwise the leaf would hold itself
            lookup.leaf = leaf
            lookups.append(lookup)

        handle = leaf.register_post_accumulate_grad_hook(keep)

    def _start_of(self, start: Callable[[Lookup, Tensor], Tensor], lookup: Lookup, output: Tensor) -> Tensor:
        if lookup.number not in self._pass.starts:
            self._pass.starts[lookup.number] = start(lookup, lookup.of_one_copy(output.detach()))
        return self._pass.starts[lookup.number]

    def _check_elsewhere(self) -> None:
        """Raise for a pass without a gradient, unless others had one: some batches may not use the embedding."""
        if not self.handles:
            raise RuntimeError(
                f"Expected an open attack on embedding `{self.name}`, but it is closed. Call `open()` first."
            )
        if (self.has_lookups or self._perturbation is not None) and not (self.had_grad and self._pass.driven):
            raise RuntimeError(
                f"Expected a backward pass through the lookups of embedding `{self.name}` before the attack, but got "
                "none. Call `loss.backward()` first, on a loss that depends on the embedding."
            )
        if not self.had_grad and self._pass.has_repeats:
            raise RuntimeError(
                f"Expected the forward to run before the backward pass, but embedding `{self.name}` was only looked up "
                "inside it, as gradient caching (GradCache, the `Cached...` losses of sentence-transformers) or "
                "reentrant checkpointing do. Use a loss without caching, or `use_reentrant=False`."
            )
        if not self.had_grad:
            raise RuntimeError(
                f"Expected the forward pass to look up embedding `{self.name}`, but it never did (with gradients on). "
                "Call `loss.backward()` before `attack()`. Give the model ids rather than `inputs_embeds`; call the "
                "embedding rather than index its weight (`F.embedding`); name the embedding that is looked up with "
                "`emb_name`; turn reentrant gradient checkpointing off (`use_reentrant=False`) where it spans the "
                "embedding; call `torch.compiler.reset()` if the model was compiled and run before the attack was "
                "built."
            )


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
        return self._tap._call(self._table, ids, output, scale)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
