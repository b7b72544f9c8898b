"""Doubling a batch, halving the outputs again, and taking some of its examples.

A batch holds *fields*, by name or by position. A field has one row per example: a tensor or an array along its first
dimension, a list (raw text) along its length. Tensors in a list, a tuple or a namedtuple are fields each, as torch's
``default_collate`` makes of tuples. Whether a sequence holds fields must not depend on lengths, which agree by chance
in some batch. Dicts are followed inwards; ``None``, strings, numbers and tensors of no dimensions belong to no example.
"""

from __future__ import annotations

import copy
import numbers
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_WAY_OUT = "Use mode='two_pass', which gives the model the batch unchanged."


def double_batch(batch: Any) -> tuple[Any, int]:
    """Return the batch with every field repeated once along its rows, and the number of rows before."""
    rows = count_examples(batch, _WAY_OUT)

    def double(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value, value])
        return np.concatenate([value, value]) if isinstance(value, np.ndarray) else value * 2

    return _change_fields(batch, rows, double, "mode='concat' cannot double it", _WAY_OUT), rows


class Part:
    """Some of the examples of a batch: ``rows``, ascending and on the CPU, of so many."""

    def __init__(self, rows: Tensor, of: int):
        self.of = of
        self._rows = {rows.device: rows}
        self._cpu = rows

    def __len__(self) -> int:
        return len(self._cpu)

    def rows(self, device: torch.device) -> Tensor:
        """Return the indices on a device, which does not wait for them."""
        if device not in self._rows:
            self._rows[device] = self._cpu.to(device, non_blocking=True)
        return self._rows[device]

    def take(self, field: Any) -> Any:
        """Return these rows of a tensor, an array or a list."""
        if isinstance(field, Tensor):
            return field.index_select(0, self.rows(field.device))
        if isinstance(field, np.ndarray):
            return field[self._cpu.numpy()]
        return type(field)(field[row] for row in self._cpu.tolist())


def take_part(batch: Any, part: Part, way_out: str) -> Any:
    """Return a batch of the same type with only these examples; an error ends with ``way_out``."""
    return _change_fields(batch, part.of, part.take, "no part of it can be taken", way_out)


def count_examples(batch: Any, way_out: str) -> int:
    """Return the number of examples, the rows of most fields; an error ends with ``way_out``."""
    voters = _voters(batch)
    if not voters:
        raise ValueError(f"Expected the batch to hold tensors or lists, but got {_describe(batch)}. {way_out}")
    lengths: Counter[int] = Counter()
    for _, field in voters:
        lengths[len(field)] += 1
    return lengths.most_common(1)[0][0]


def scale_counts(batch: Any, factor: float) -> Any:
    """Return the batch with the count that its loss is divided by multiplied; itself if there is none."""
    name = "num_items_in_batch"  # from transformers' Trainer: the number of tokens in all accumulated batches
    if isinstance(batch, Mapping) and batch.get(name) is not None:
        return {**batch, name: factor * batch[name]}
    return batch


def fields_of(batch: Any) -> list[tuple[str, Any]]:
    """Return the fields of a batch with their paths, such as ``batch['words']``."""
    return _fields(batch)[-1]


def first_half(value: Any, rows: int) -> Any:
    """
    Return outputs of ``2 * rows`` examples cut to the first half; values without a clear row per example stay. A dict
    becomes a plain dict.
    """
    if isinstance(value, Mapping):
        halved = {}
        for key, item in value.items():
            halved[key] = first_half(item, rows)
        return halved
    if _is_array(value) and value.shape[0] == 2 * rows:
        return value[:rows]
    if _is_sequence(value) and len(value) > 0:
        if all(_has_rows(item, 2 * rows) for item in value):
            return _like(value, [first_half(item, rows) for item in value])
        if len(value) == 2 * rows and not _is_named(value):
            return value[:rows]
    return value


def _map(change: Callable[[Any, str, bool], Any], value: Any, path: str = "batch", in_list: bool = False) -> Any:
    """Return nested containers of the same types with ``change(value, path, in_list)`` in place of each entry."""
    is_mapping = isinstance(value, Mapping)
    if is_mapping:
        keys = list(value)
    elif _is_sequence(value) and _holds_fields(value, path):
        keys = list(range(len(value)))
    else:
        return change(value, path, in_list)
    in_list = not is_mapping and path != "batch"
    items = []
    for key in keys:
        items.append(_map(change, value[key], f"{path}[{key!r}]", in_list))
    if all(map(operator.is_, items, map(value.__getitem__, keys))):
        return value
    if not is_mapping:
        return _like(value, items)
    copied = copy.copy(value)  # so that a ``defaultdict`` or a ``BatchEncoding`` stays one
    for key, item in zip(keys, items, strict=True):
        copied[key] = item
    return copied


def _voters(batch: Any) -> list[tuple[str, Any]]:
    """Return the fields that tell how many examples there are: tensors, those in lists where there are no others."""
    outside_lists, arrays, fields = _fields(batch)
    return outside_lists or arrays or fields


def _fields(batch: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Return the arrays outside lists, all arrays, and all fields, with their paths."""
    outside_lists, arrays, fields = [], [], []

    def collect(value: Any, path: str, in_list: bool) -> Any:
        is_array = _is_array(value)
        if is_array or _is_sequence(value):
            fields.append((path, value))
        if is_array:
            arrays.append((path, value))
        if is_array and not in_list:
            outside_lists.append((path, value))
        return value

    _map(collect, batch)
    return outside_lists, arrays, fields


def _change_fields(batch: Any, rows: int, change: Callable[[Any], Any], failure: str, way_out: str) -> Any:
    """Return a batch of the same type, each field changed; raise for a field without ``rows`` rows."""

    def changed(value: Any, path: str, in_list: bool) -> Any:
        if value is None or isinstance(value, (str, bytes, numbers.Number)) or getattr(value, "ndim", None) == 0:
            return value
        if (_is_array(value) or _is_sequence(value)) and len(value) == rows:
            return change(value)
        hint = " A list of tensors is taken for fields." if in_list else ""
        reference = next(path for path, field in _voters(batch) if len(field) == rows)
        raise ValueError(
            f"Expected every field of the batch to have one entry for each example, but got {_describe(value)} for "
            f"`{path}`, where `{reference}` has {rows} rows: {failure}.{hint} {way_out}"
        )

    return _map(changed, batch)


def _holds_fields(sequence: list[Any] | tuple[Any, ...], path: str) -> bool:
    """Return whether a sequence holds fields, and not an entry for each example."""
    whole_batch = path == "batch" and any(isinstance(item, (Mapping, list, tuple)) for item in sequence)
    return whole_batch or _is_named(sequence) or _has_arrays(sequence)


def _has_arrays(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return any(_has_arrays(i) if _is_sequence(i) else _is_array(i) for i in sequence)


def _has_rows(value: Any, rows: int) -> bool:
    """Return whether an output is a tensor of so many rows, or holds only such tensors."""
    if _is_sequence(value):
        return len(value) > 0 and all(_has_rows(item, rows) for item in value)
    return _is_array(value) and value.shape[0] == rows


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence)  # a namedtuple of its own meaning


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _like(sequence: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    return type(sequence)(*items) if _is_named(sequence) else type(sequence)(items)


def _is_named(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return hasattr(sequence, "_fields")  # how namedtuples are known


def _describe(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"shape {tuple(value.shape)}"
    size = f" of length {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"{type(value).__name__}{size}"
