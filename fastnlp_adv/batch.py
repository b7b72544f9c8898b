"""What is done with a batch: doubling it, halving the outputs again, and taking some of its examples.

A batch holds *fields*, by name or by position. A field has one row for each example: a tensor or an array along its
first dimension, a list (raw text) along its length. Tensors in a list, a tuple or a namedtuple are fields each, as
torch's ``default_collate`` makes of tuples. What a sequence holds must not depend on lengths, which agree by chance in
some batch.
"""

from __future__ import annotations

import copy
import numbers
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Part", "count_examples", "double_batch", "fields_of", "first_half", "take_part"]

_WAY_OUT = "Use mode='two_pass', which gives the model the batch as it is."


def double_batch(batch: Any) -> tuple[Any, int]:
    """
    Return the batch followed by itself, ``[x; x]`` along the rows of every field.

    :param batch: a dict, a tuple or list of fields, one tensor, or a list of raw examples. Tensors, arrays and lists
        are doubled, dicts, sequences of tensors and namedtuples followed inwards; ``None``, strings, numbers and
        tensors of no dimensions stay.
    :return: the doubled batch, of the same type, and the number of rows before doubling.
    :raises ValueError: if a field has another number of rows than the rest, or is of an unknown type; it is named.

    Example::

        >>> doubled, rows = double_batch({"words": torch.tensor([[1, 2], [3, 4]]), "text": ["a", "b"], "scale": 0.5})
        >>> doubled["words"].tolist(), doubled["text"], doubled["scale"], rows
        ([[1, 2], [3, 4], [1, 2], [3, 4]], ['a', 'b', 'a', 'b'], 0.5, 2)
    """
    rows = count_examples(batch, _WAY_OUT)

    def double(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value, value])
        return np.concatenate([value, value]) if isinstance(value, np.ndarray) else value * 2

    return _each_field(batch, rows, double, "mode='concat' cannot double it", _WAY_OUT), rows


class Part:
    """
    Some of the examples of a batch.

    :param rows: their indices in the batch, ascending, on the CPU.
    :param of: how many examples the batch has.
    """

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
    """
    Return some examples of a batch.

    :param batch: as in :func:`double_batch`.
    :param part: which.
    :param way_out: what to do where the batch has no examples to take.
    :return: a batch of the same type, in which what belongs to no example is as it was.
    :raises ValueError: if a field has another number of rows than the rest, or is of an unknown type; it is named.

    Example::

        >>> batch = {"words": torch.tensor([[1, 2], [3, 4], [5, 6]]), "text": ["a", "b", "c"], "scale": 0.5}
        >>> taken = take_part(batch, Part(torch.tensor([0, 2]), of=3), "Use fraction=1.")
        >>> taken["words"].tolist(), taken["text"], taken["scale"]
        ([[1, 2], [5, 6]], ['a', 'c'], 0.5)
    """
    return _each_field(batch, part.of, part.take, "no part of it can be taken", way_out)


def _each_field(batch: Any, rows: int, change: Callable[[Any], Any], failure: str, way_out: str) -> Any:
    """Return a batch of the same type, each field of so many ``rows`` changed; other fields are refused."""

    def changed(value: Any, path: str) -> Any:
        if _stays(value):
            return value
        if isinstance(value, Mapping):
            copied: Any = copy.copy(value)  # so that a ``defaultdict`` or a ``BatchEncoding`` stays one
            for key, item in value.items():
                copied[key] = changed(item, f"{path}[{key!r}]")
            return copied
        if _is_array(value) and value.shape[0] == rows:
            return change(value)
        if _is_sequence(value):
            if _holds_fields(value, path):
                return _like(value, [changed(item, f"{path}[{i}]") for i, item in enumerate(value)])
            if len(value) == rows:
                return change(value)
        hint = " A list of tensors is taken for fields." if _is_in_list(path) else ""
        reference = next(path for path, field in _voters(batch) if len(field) == rows)
        raise ValueError(
            f"Expected every field of the batch to have one entry for each example, but got {_describe(value)} for "
            f"`{path}`, where `{reference}` has {rows} rows: {failure}.{hint} {way_out}"
        )

    return changed(batch, "batch")


def first_half(value: Any, rows: int) -> Any:
    """
    Return what belongs to the first ``rows`` of ``2 * rows`` examples.

    :param value: anything that a model returns. Where it is not clear that something has a row for each example, it
        stays as it is.
    :param rows: the number of examples before doubling.
    :return: ``value`` with its tensors, arrays and lists of ``2 * rows`` rows cut to the first half; a dict inside
        becomes a plain dict.

    Example::

        >>> first_half({"hidden": torch.arange(4), "layers": 12}, rows=2)
        {'hidden': tensor([0, 1]), 'layers': 12}
    """
    if isinstance(value, Mapping):
        return {key: first_half(item, rows) for key, item in value.items()}
    if _is_array(value) and value.shape[0] == 2 * rows:
        return value[:rows]
    if _is_sequence(value) and len(value) > 0:
        if all(_has_rows(item, 2 * rows) for item in value):
            return _like(value, [first_half(item, rows) for item in value])
        if len(value) == 2 * rows and not _is_named(value):
            return value[:rows]
    return value


def count_examples(batch: Any, way_out: str) -> int:
    """
    Return how many examples a batch has: the rows of most of its fields.

    :param batch: as in :func:`double_batch`.
    :param way_out: what to do where it has no fields.
    :raises ValueError: if it holds neither tensors nor lists.

    Example::

        >>> count_examples({"words": torch.zeros(3, 2), "labels": torch.zeros(3)}, "Use fraction=1.")
        3
    """
    voters = _voters(batch)
    if not voters:
        raise ValueError(f"Expected the batch to hold tensors or lists, but got {_describe(batch)}. {way_out}")
    return Counter(len(field) for _, field in voters).most_common(1)[0][0]


def _voters(batch: Any) -> list[tuple[str, Any]]:
    """Return the fields that tell how many examples there are: tensors, those in lists where there are no others."""
    fields = list(fields_of(batch))
    arrays = [field for field in fields if _is_array(field[1])]
    return [field for field in arrays if not _is_in_list(field[0])] or arrays or fields


def fields_of(value: Any, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """
    Yield the fields of a batch, with what leads to them.

    :param value: the batch.
    :param path: what it is called.
    :return: paths and fields.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from fields_of(item, f"{path}[{key!r}]")
    elif _is_sequence(value) and _holds_fields(value, path):
        for i, item in enumerate(value):
            yield from fields_of(item, f"{path}[{i}]")
    elif _is_array(value) or _is_sequence(value):
        yield path, value


def _is_in_list(path: str) -> bool:
    return path[-2].isdigit() and path.count("[") > 1


def _holds_fields(sequence: list[Any] | tuple[Any, ...], path: str) -> bool:
    """Tell whether a sequence holds fields, and not an entry for each example."""
    whole_batch = path == "batch" and any(isinstance(item, (Mapping, list, tuple)) for item in sequence)
    return whole_batch or _is_named(sequence) or _has_arrays(sequence)


def _has_arrays(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return any(_has_arrays(i) if _is_sequence(i) else _is_array(i) for i in sequence)


def _has_rows(value: Any, rows: int) -> bool:
    """Tell whether something that a model returned is a tensor of so many rows, or holds such tensors alone."""
    if _is_sequence(value):
        return len(value) > 0 and all(_has_rows(item, rows) for item in value)
    return _is_array(value) and value.shape[0] == rows


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence)  # a namedtuple of its own meaning


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0


def _stays(value: Any) -> bool:
    scalar = isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    return scalar or value is None or isinstance(value, (str, bytes, numbers.Number, np.generic))


def _like(sequence: list[Any] | tuple[Any, ...], items: list[Any]) -> Any:
    return type(sequence)(*items) if _is_named(sequence) else type(sequence)(items)


def _is_named(sequence: list[Any] | tuple[Any, ...]) -> bool:
    return hasattr(sequence, "_fields")  # how namedtuples are known


def _describe(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"shape {tuple(value.shape)}"
    size = f" of length {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"{type(value).__name__}{size}"
