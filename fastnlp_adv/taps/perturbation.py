"""Lookups, and their perturbation: one per token type, or one per position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..batch import Part
from ..forwards import Forward

Granularity = Literal["vocab", "sequence", "token"]


@dataclass(eq=False)
class Lookup:
    """
    One call of an embedding.

    :param table: the embedding.
    :param ids: at the attacked rows of one copy of the batch.
    :param all_ids: all ids of the call.
    :param copies: how many copies of the batch they hold, one after the other.
    :param rows: the attacked rows of a copy; ``None`` for all.
    :param transposed: True if the second dimension of ``all_ids`` holds the examples; in ``ids`` it is the first.
    :param mask: True at real positions, of the shape of ``ids``; ``None`` for all but padding.
    :param trained: False in a forward with gradients on that looks up without.
    :param number: its place in its forward; in another forward of the pass, the same number is the same place. -1 if it
        is not known.
    """

    table: nn.Embedding
    ids: Tensor
    all_ids: Tensor
    copies: int = 1
    rows: Tensor | None = None
    transposed: bool = False
    mask: Tensor | None = None
    trained: bool = True
    number: int = -1
    #: the tensor that is added to the output, of shape ``(*ids, features)``; in a plain loop, once it has a gradient
    leaf: Tensor | None = field(default=None, init=False)

    @property
    def grad(self) -> Tensor:
        """The gradient at the leaf, the sum over the copies; for lookups that have one."""
        assert self.leaf is not None and self.leaf.grad is not None
        return self.leaf.grad

    def add(self, output: Tensor, delta: Tensor) -> Tensor:
        """Return the output with ``delta``, of shape ``(*ids, features)``, added to the attacked rows of each copy."""
        if self.copies == 1 and self.rows is None:
            return output + (delta.transpose(0, 1) if self.transposed else delta)
        if self.transposed:
            return replace(self, transposed=False).add(output.transpose(0, 1), delta).transpose(0, 1).contiguous()
        by_copy = output.reshape(self.copies, len(output) // self.copies, *output.shape[1:])
        if self.rows is None:
            return (by_copy + delta).flatten(0, 1)
        return by_copy.index_add(1, self.rows, delta.expand(self.copies, *delta.shape)).flatten(0, 1)

    def real(self) -> Tensor:
        """Return False at padding, whose row of the weight never gets a gradient; of shape ``(*ids, 1)``."""
        return _real(self.ids, self.table.padding_idx, self.mask)

    def of_one_copy(self, output: Tensor) -> Tensor:
        """Return the outputs of one copy of the batch, examples first."""
        output = output.transpose(0, 1) if self.transposed else output
        return output if self.copies == 1 else output[: len(output) // self.copies]


def one_copy(ids: Tensor, copies: int, rows: Tensor | None) -> Tensor:
    """Return the ids at the attacked rows of the first of several copies."""
    ids = ids[: len(ids) // copies]
    return ids if rows is None else ids.index_select(0, rows)


@dataclass
class TapPass:
    """The lookups of one pass at one tap."""

    #: False in a plain loop, where a pass ends at the first lookup after a backward pass
    driven: bool = False
    #: False if no gradient at the lookups is read after the pass
    is_read: bool = True
    #: the attacked rows; ``None`` for all
    part: Part | None = None
    #: True if the pass runs on the attacked rows only
    alone: bool = False
    #: in a plain loop only those that have a gradient, since the graph keeps the others
    lookups: list[Lookup] = field(default_factory=list)
    #: all that exist, for checkpoints
    alive: WeakSet[Lookup] = field(default_factory=WeakSet)
    #: how many numbers there are
    total: int = 0
    #: the numbers of lookups in announced forwards, by their place there
    numbers: dict[int, int] = field(default_factory=dict)
    #: True if the first lookup was in an announced forward
    announced: bool = False
    #: True if there was a lookup with gradients on; and one inside a backward pass
    has_lookups: bool = False
    has_repeats: bool = False
    #: the perturbations that the pass starts at, by number
    starts: dict[int, Tensor] = field(default_factory=dict)
    #: in a plain loop, the last pass with a gradient, if lookups came after its backward pass
    before: TapPass | None = None

    def add_number(self, lookup: Lookup, tap: object, forward: Forward | None) -> None:
        """
        Number a lookup, in the order in which the places of the pass first came. Unannounced lookups are numbered
        separately: they need not belong to the examples of announced forwards.
        """
        lookup.number = self.total
        if forward is not None:
            self.announced = self.announced or not self.total
            place = forward.lookups.get(id(tap), 0)
            forward.lookups[id(tap)] = place + 1
            lookup.number = self.numbers.setdefault(place, self.total)
        self.total += lookup.number == self.total
        self.alive.add(lookup)

    def count(self, lookups: Sequence[Lookup]) -> int:
        """Return how many numbers there are, after numbering the lookups of a plain loop again."""
        if self.driven or self.announced:
            return self.total
        first = min(lookup.number for lookup in lookups)  # forwards without a backward pass may have come before
        for lookup in lookups:
            lookup.number -= first
        return self.total - first

    def repeated(self, table: nn.Embedding, ids: Tensor, name: str, *, by_position: bool) -> Lookup:
        """Return a lookup that a checkpoint repeats; without a number where the perturbation does not need one."""
        if not by_position and self.part is None:
            return Lookup(table, ids, ids)
        if not by_position and self.part is not None:
            # how many copies is not announced now, but the first time there was a row for each example
            copies = len(ids) // (len(self.part) if self.alone else self.part.of)
            rows = self.attacked_rows(ids, copies, name)
            return Lookup(table, one_copy(ids, copies, rows), ids, copies, rows)
        alive = list(self.alive)
        if not alive:  # no forward came before: the tap raises when its gradient is read
            return Lookup(table, ids, ids)
        same = [v for v in alive if v.all_ids.shape == ids.shape and v.all_ids.data_ptr() == ids.data_ptr()]
        found = same or alive
        if len({lookup.number for lookup in found}) != 1:
            raise RuntimeError(
                f"Expected each lookup of embedding `{name}` inside gradient checkpointing to be known by its ids, but "
                f"got {len(found)} that may be the one. Use `granularity='vocab'`, or look up outside the checkpointed "
                "function."
            )
        return found[0]

    def attacked_rows(self, ids: Tensor, copies: int, name: str) -> Tensor | None:
        """Return the attacked rows of a copy of the batch; ``None`` where the pass runs on these only."""
        assert self.part is not None
        examples = len(self.part) if self.alone else self.part.of
        if not ids.dim() or len(ids) != copies * examples:
            raise RuntimeError(
                f"Expected embedding `{name}` to look up ids with a row for each of the {copies * examples} "
                f"examples of a pass, since `fraction` attacks some of them, but got ids of shape {tuple(ids.shape)}. "
                "Use `fraction=1`, or an `emb_name` that only matches embeddings with such ids."
            )
        return None if self.alone else self.part.rows(ids.device)


@dataclass
class Delta:
    """
    A perturbation and the gradient that moves it: the input of one ascent step.

    :param value: the perturbation now.
    :param grad: the gradient of the loss with respect to it, of the same shape.
    :param dims: the dimensions that share one norm.
    :param number: the number of the lookup in its forward; 0 where there is one perturbation for all lookups.
    :param find_free: computes ``free``, which few methods need.
    """

    value: Tensor
    grad: Tensor
    dims: tuple[int, ...]
    number: int = 0
    find_free: Callable[[], Tensor] | None = None

    @property
    def free(self) -> Tensor | None:
        """Which elements may move; padding may not. Broadcasts to ``value``; ``None`` for all."""
        return None if self.find_free is None else self.find_free()


class ByToken:
    r"""
    One perturbation per token type, as if the rows of the weight were perturbed: :math:`G_v=\sum_{i:\,id_i=v} g_i`.

    The table has one slot per position of the micro-batch. The ids are sorted; the slot of a token is the first place
    where its id stands. So neither the cost nor the shapes depend on the vocabulary or on the number of distinct
    tokens, which would take a synchronization.

    :param lookups: the lookups of the first pass that have a gradient.
    """

    def __init__(self, lookups: Sequence[Lookup]):
        ids = []
        #: to find padding; not the lookups, whose leaves hold gradients
        self._places: list[tuple[Tensor, int | None, Tensor | None]] = []
        for lookup in lookups:
            ids.append(lookup.ids.flatten())
            self._places.append((lookup.ids, lookup.table.padding_idx, lookup.mask))
        self._keys = torch.cat(ids).sort().values
        grad = lookups[0].grad
        dtype = torch.promote_types(grad.dtype, torch.float32)
        self.values = [grad.new_zeros((self._keys.numel(), grad.shape[-1]), dtype=dtype)]

    def at(self, lookup: Lookup) -> Tensor | None:
        """Return the perturbation of a lookup, of shape ``(*ids, features)``; ``None`` for zeros."""
        if not self._keys.numel():
            return None
        slots, known = self._slots(lookup.ids)
        return functional.embedding(slots, self.values[0]) * known.unsqueeze(-1)

    def deltas(self, lookups: Sequence[Lookup]) -> list[Delta]:
        """Return the values, with their gradients in the pass of these lookups."""
        (table,) = self.values
        size, features = table.shape
        total = table.new_zeros((size + 1, features))  # the last row is for padding and other tokens
        for lookup in lookups:
            slots, known = self._slots(lookup.ids)
            real = _real(lookup.ids, lookup.table.padding_idx, lookup.mask).squeeze(-1)
            slots = torch.where(real & known, slots, size)
            grad = lookup.grad.to(total.dtype)
            if lookup.table.scale_grad_by_freq:
                grad = grad / _counts(lookup.ids).unsqueeze(-1)
            total.index_add_(0, slots.flatten(), grad.reshape(-1, features))
        return [Delta(table, total[:size], (0, 1), find_free=self._free)]

    def _free(self) -> Tensor:
        used = torch.zeros_like(self._keys, dtype=torch.long)
        for ids, padding_idx, mask in self._places:
            used.index_add_(0, self._slots(ids)[0].flatten(), _real(ids, padding_idx, mask).flatten().long())
        return (used > 0).unsqueeze(-1)

    def _slots(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids.to(self._keys.dtype).contiguous()
        slots = torch.searchsorted(self._keys, ids).clamp(max=max(self._keys.numel() - 1, 0))
        return slots, self._keys[slots] == ids


class ByPosition:
    """
    One perturbation per position, normalized over each example (``"sequence"``) or each position (``"token"``). All
    forwards of a pass share it.

    :param lookups: the lookups of the first pass that have a gradient.
    :param total: how many lookups a forward of this pass had, with or without a gradient.
    :param starts: the values in this pass, by number; zeros for others.
    :param per_token: normalize each position separately.
    """

    def __init__(self, lookups: Sequence[Lookup], total: int, starts: dict[int, Tensor], *, per_token: bool):
        self._per_token = per_token
        self._total = total
        #: by number, functions that return where the perturbation may move
        self._free: dict[int, Callable[[], Tensor]] = {}
        self.values: list[Tensor] = []
        for lookup in sorted(lookups, key=lambda each: each.number):
            if lookup.number not in self._free:
                grad, start = lookup.grad, starts.get(lookup.number)
                dtype = torch.promote_types(grad.dtype, torch.float32)
                self._free[lookup.number] = partial(_real, lookup.ids, lookup.table.padding_idx, lookup.mask)
                self.values.append(torch.zeros_like(grad, dtype=dtype) if start is None else start.to(dtype))

    def at(self, lookup: Lookup) -> Tensor | None:
        """Return the perturbation of a lookup, of shape ``(*ids, features)``; ``None`` for zeros."""
        if lookup.number >= self._total:
            raise RuntimeError(
                f"Expected every pass over a batch to look up as often as the first pass, {self._total} times, but "
                "got another lookup. Use `granularity='vocab'`, which follows tokens, not positions, or "
                "`torch.no_grad()` for lookups that are not trained."
            )
        return self._value(lookup)

    def _value(self, lookup: Lookup) -> Tensor | None:
        value = dict(zip(self._free, self.values, strict=True)).get(lookup.number)
        if value is not None and lookup.ids.shape != value.shape[:-1]:
            raise RuntimeError(
                f"Expected every forward over a batch to look up ids of the same shape, but got "
                f"{tuple(lookup.ids.shape)} where the first pass had {tuple(value.shape[:-1])}. Use "
                "`granularity='vocab'`, which follows tokens, not positions."
            )
        return value

    def deltas(self, lookups: Sequence[Lookup]) -> list[Delta]:
        """Return the values, with their gradients in the pass of these lookups."""
        totals: dict[int, Tensor] = {}
        for lookup in lookups:
            value = self._value(lookup)
            if value is not None:
                grad = torch.where(lookup.real(), lookup.grad.to(value.dtype), 0)
                totals[lookup.number] = totals[lookup.number] + grad if lookup.number in totals else grad
        found = []
        for number, value in zip(self._free, self.values, strict=True):
            dims = (-1,) if self._per_token else tuple(range(1, value.dim()))
            grad = totals[number] if number in totals else torch.zeros_like(value)
            found.append(Delta(value, grad, dims, number, self._free[number]))
        return found


#: adds values to the outputs of lookups, and collects their gradients
Perturbation = ByToken | ByPosition


def _real(ids: Tensor, padding_idx: int | None, mask: Tensor | None) -> Tensor:
    real = torch.ones_like(ids, dtype=torch.bool) if padding_idx is None else ids != padding_idx
    return (real if mask is None else real & mask).unsqueeze(-1)


def _counts(ids: Tensor) -> Tensor:
    ids = ids.contiguous()
    keys = ids.flatten().sort().values
    return torch.searchsorted(keys, ids, right=True) - torch.searchsorted(keys, ids)
