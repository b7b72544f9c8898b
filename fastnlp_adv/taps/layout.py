"""How the ids of a lookup lie in the batch: which dimension holds the examples, and which positions are real."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import forwards
from ..batch import fields_of
from ..versions import compile_nothing_in

#: the name of a field, or a function of the batch
Mask = str | Callable[[Any], Tensor] | None


class _InputsHook:
    """Announces the inputs of the model's forward by name. A copy or a pickle of the model gets one without a name."""

    def __init__(self, names: list[str] | None = None):
        self.names = names

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.names is not None:
            named = [*self.names[: len(args)], *map(str, range(len(self.names), len(args)))]
            forwards.scope.inputs = {**dict(zip(named, args, strict=True)), **kwargs}

    def end(self, *_: Any) -> None:
        forwards.scope.inputs = None

    def __reduce__(self) -> tuple[type[_InputsHook], tuple[()]]:
        return _InputsHook, ()


def watch_inputs(model: nn.Module) -> list[RemovableHandle]:
    """Announce the inputs of each forward of the model in :data:`~fastnlp_adv.forwards.scope`."""
    hook = _InputsHook(list(inspect.signature(model.forward).parameters))
    begin, end = compile_nothing_in(hook.begin), compile_nothing_in(hook.end)
    return [
        model.register_forward_pre_hook(begin, with_kwargs=True),
        model.register_forward_hook(end, always_call=True),
    ]


class Layout:
    """
    Finds the layout of the lookups of one embedding, from the inputs of the model's forward or else from the batch.
    The sizes tell which dimension holds the examples; where both are the same, the ids, once.

    :param name: the name of the embedding.
    :param mask: which positions are real besides those that are not padding; ``None`` for the ``attention_mask`` where
        there is no ``padding_idx``.
    """

    def __init__(self, name: str, mask: Mask):
        self._name = name
        self._mask = mask
        #: the ids at the attacked rows, by number, until the first step with a ``fraction`` is over
        self._attacked: dict[int, Tensor] | None = {}
        #: for ids of as many examples as positions
        self._is_transposed: bool | None = None

    def is_transposed(self, ids: Tensor, copies: int, *, by_example: bool) -> bool:
        """
        Return True if the second dimension of the ids holds the examples, of so many copies of the batch.

        :param by_example: True to raise if neither can hold them.
        """
        inputs, batch = forwards.scope.inputs, forwards.scope.batch
        fields = _tensors(inputs if inputs is not None else batch and batch.data)
        copies = 1 if inputs is not None else copies
        if not fields or not ids.dim():
            return False
        first, second = ids.shape[0], ids.shape[1] if ids.dim() > 1 else -1
        lengths = [copies * len(field) for field in fields if field.dim() == 1]
        if not lengths and inputs is not None:  # a forward without the labels
            given = _tensors(batch and batch.data)
            if any(field.shape == ids.shape for field in given):
                lengths = [len(field) for field in given if field.dim() == 1]
        lengths = lengths or [copies * len(field) for field in fields]
        if first == second and first in lengths:
            if self._is_transposed is None:
                self._is_transposed = _holds_transposed(fields, ids)
            return self._is_transposed
        if first in lengths or first == 1:
            found = False
        elif second in lengths and any(f.shape[:2] in (ids.shape[:2], ids.shape[:2][::-1]) for f in fields):
            found = True
        else:
            found = False
            is_of_positions = any(first in field.shape for field in fields)  # as position ids, which all examples share
            if by_example and not is_of_positions and not any(length and first % length == 0 for length in lengths):
                raise RuntimeError(
                    f"Expected a dimension of the ids that embedding `{self._name}` looks up to hold the "
                    f"{max(set(lengths), key=lengths.count)} examples of the batch, but got ids of shape "
                    f"{tuple(ids.shape)}. Use `granularity='vocab'` or 'token', which need no examples, or name with "
                    "`emb_name` an embedding of such ids."
                )
        self._is_transposed = found if first != second else self._is_transposed
        return found

    def mask_of(self, ids: Tensor, copies: int, rows: Tensor | None, padding_idx: int | None) -> Tensor | None:
        """
        Return True at the real positions of one copy, of the shape of ``ids``; ``None`` where nothing tells.

        :param rows: the attacked rows of the batch.
        """
        if self._mask is None and padding_idx is not None:
            return None
        inputs, data = forwards.scope.inputs, forwards.scope.batch and forwards.scope.batch.data
        found: Any
        is_input = data is None  # otherwise it is of one copy of the whole batch
        if callable(self._mask):
            found = self._mask(inputs if data is None else data)
        else:
            key = self._mask or "attention_mask"
            is_input = not isinstance(data, Mapping) or key not in data
            source = inputs if is_input else data
            is_known = isinstance(source, Mapping) and (self._mask is not None or _are_input_ids(ids, source))
            found = source.get(key) if is_known and isinstance(source, Mapping) else None
        if isinstance(found, Tensor) and found.dim():
            found = found[: len(found) // copies] if is_input else found
            several = 1 if is_input or forwards.scope.forward is None else forwards.scope.forward.copies
            if several > 1 and len(ids) == several * len(found):  # the ids are of all copies
                found = torch.cat([found] * several)
            found = found if rows is None or len(found) == len(ids) else found.index_select(0, rows.to(found.device))
            found = found.transpose(0, 1) if found.shape != ids.shape and found.dim() == 2 else found
        if not isinstance(found, Tensor) or found.shape != ids.shape:
            if self._mask is None:
                return None
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RuntimeError(
                f"Expected `mask` to give a tensor of shape {tuple(ids.shape)}, like the ids of embedding "
                f"`{self._name}`, but got {shape}. Give the name of such a field of the batch, or a function of the "
                "batch. In your own loop, pass the batch to `step(closure, batch)`, or the field to the model."
            )
        return found != 0

    def check_order(self, number: int, ids: Tensor) -> None:
        """Warn if the attacked rows seem to be other examples in another pass; synchronizes, in the first step only."""
        if self._attacked is None:
            return
        before = self._attacked.setdefault(number, ids.clone())
        if before.shape == ids.shape and not torch.equal(before, ids):
            self._attacked = None
            warnings.warn(
                f"`fraction` expects the model to look up examples in the order of the batch, but embedding "
                f"`{self._name}` looked up different ids for the attacked rows in another pass. If the model sorts the "
                "batch, the wrong examples are perturbed: sort before, or use `fraction=1`. Ignore this for a model "
                "that masks words itself.",
                stacklevel=2,
            )

    def end_step(self) -> None:
        """Stop checking the order after the first step."""
        self._attacked = None if self._attacked else self._attacked


def _tensors(value: Any) -> list[Tensor]:
    return [field for _, field in fields_of(value) if isinstance(field, Tensor)]


def _are_input_ids(ids: Tensor, fields: Mapping[str, Any]) -> bool:
    """Return False for ids that the attention mask may not be of: a decoder's, as long as the encoder's."""
    given = fields.get("input_ids")
    if isinstance(given, Tensor) and given.data_ptr() == ids.data_ptr():
        return True
    others = {name: f for name, f in fields.items() if name not in ("input_ids", "attention_mask", "token_type_ids")}
    return not any(field.shape == ids.shape for field in _tensors(others))


def _holds_transposed(fields: list[Tensor], ids: Tensor) -> bool:
    """Compare as many examples as positions with the fields; it synchronizes, once."""
    for field in fields:
        if field.shape == ids.shape and not field.is_floating_point():
            if torch.equal(field, ids):
                return False
            if torch.equal(field.transpose(0, 1), ids):
                return True
    return False
