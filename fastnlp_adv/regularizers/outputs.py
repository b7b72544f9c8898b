"""Reads the outputs of a training step: the loss, the predictions, and which of their positions count."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: a batch key, or a function of batch and outputs
Mask = str | Callable[..., Any] | None

#: where labels are looked for, and the label that cross entropy ignores
LABELS = ("labels", "label", "targets", "target")
IGNORED = -100

#: how the classes of causal language models end
_CAUSAL = ("ForCausalLM", "GPT2LMHeadModel", "GPTLMHeadModel", "CTRLLMHeadModel", "BertLMHeadModel")

_WANTED = "a dict or dataclass with `loss` and `pred` (or `logits`)"


def read_outputs(outputs: Any, *, needs_loss: bool = True, several: bool = False) -> dict[str, Any]:
    """
    Return a new dict of the outputs: ``loss`` as one number, and ``pred``, which is ``logits`` where there is no
    ``pred`` or it holds integers. With ``several``, ``pred`` may be a tuple, list or dict of tensors, or the pair of
    ``start_logits`` and ``end_logits``.
    """
    entries = _as_dict(outputs)
    if needs_loss or entries.get("loss") is not None:
        entries["loss"] = _loss(entries)
    return {**entries, "pred": _prediction(entries, several)}


def read_loss(outputs: Any) -> dict[str, Any]:
    """Return a new dict of the outputs, with ``loss`` as one number, for methods that need no prediction."""
    entries = _as_dict(outputs)
    return {**entries, "loss": _loss(entries)}


def _as_dict(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    raise ValueError(f"Expected the training step to return {_WANTED}, but got {type(outputs).__name__}.")


def _loss(entries: dict[str, Any]) -> Tensor:
    loss = entries.get("loss")
    if isinstance(loss, Tensor):
        return loss.mean() if loss.ndim else loss
    found = f"the entries {sorted(map(str, entries))}" if loss is None else f"`loss` of type {type(loss).__name__}"
    raise ValueError(
        f"Expected the training step to return {_WANTED}, but got {found}. Compute the loss in it (models of "
        "transformers do when they are given `labels`), or name it with the Trainer's `output_mapping`."
    )


def by_name(outputs: Any) -> Any:
    """Return a tuple as a dict: unless its fields have names, the loss comes first, and then a prediction."""
    if not isinstance(outputs, tuple) or not outputs:
        return outputs
    named = dict(zip(_names(outputs), outputs, strict=True))
    preds = [value for value in outputs[1:] if isinstance(value, Tensor) and value.ndim and value.is_floating_point()]
    pred = {"pred": preds[0]} if preds and "logits" not in named else {}
    return {"loss": outputs[0], **pred, **named}


def named_with(loss: Tensor, outputs: Any) -> dict[str, Any]:
    """
    Return outputs by name, beside whose loss a trainer has one of its own. A tuple begins with the loss, or, where the
    model got no labels, with a prediction.
    """
    if isinstance(outputs, tuple) and outputs:
        has_loss = isinstance(outputs[0], Tensor) and outputs[0].ndim == 0
        outputs = by_name(outputs if has_loss else (loss, *outputs))
    return {**({"logits": outputs} if isinstance(outputs, Tensor) else _as_dict(outputs)), "loss": loss}


def like(returned: Any, entries: dict[str, Any]) -> Any:
    """Return the model's outputs, in their own type, with R-Drop's loss; and with ``kl`` in a mapping."""
    if isinstance(returned, tuple):
        names = _names(returned)
        first = names[0] if "loss" in names else "loss"
        values = [entries[first], *(entries[name] for name in names[1:])]
        return type(returned)(*values) if hasattr(returned, "_fields") else type(returned)(values)
    made = copy.copy(returned)
    if isinstance(returned, Mapping):
        own = {name: entries[name] for name in [*returned, *({"kl"} & entries.keys())]}
        if dataclasses.is_dataclass(
            returned
        ):  # a ModelOutput, which DistributedDataParallel builds again from its fields
            return _output_with_kl(type(returned))(**own)
        for name, value in own.items():
            made[name] = value
    else:
        for field in dataclasses.fields(returned):
            object.__setattr__(made, field.name, entries[field.name])
    return made


@functools.cache
def _output_with_kl(kind: type) -> type:
    return dataclasses.make_dataclass(kind.__name__, [("kl", Any, None)], bases=(kind,))


def _names(outputs: tuple[Any, ...]) -> list[str]:
    return list(getattr(outputs, "_fields", map(str, range(len(outputs)))))


def tensors_of(pred: Any) -> list[Tensor]:
    """Return the tensors of a prediction; none if it holds anything else."""
    if isinstance(pred, Tensor):
        return [pred]
    parts = list(pred.values() if isinstance(pred, Mapping) else pred)
    return parts if all(isinstance(part, Tensor) for part in parts) else []


def _prediction(entries: dict[str, Any], several: bool) -> Any:
    kinds = (Tensor, tuple, list, Mapping) if several else Tensor
    integers: list[Tensor] = []
    ends = (entries.get("start_logits"), entries.get("end_logits"))
    for candidate in (entries.get("pred"), entries.get("logits"), ends if several else None):
        found = tensors_of(candidate) if isinstance(candidate, kinds) else []
        if found and all(map(torch.is_floating_point, found)):
            return candidate
        integers += found
    if integers:
        raise ValueError(
            f"Expected `pred` to hold floating-point logits or values, but got {integers[0].dtype}. Return the logits; "
            "`evaluate_step` can still return their argmax."
        )
    raise ValueError(
        f"Expected the training step to return {_WANTED}, but got the entries {sorted(map(str, entries))}. Return the "
        "logits as `pred`, or name them with the Trainer's `output_mapping`."
    )


def find_masks(mask: Mask, batch: Any, outputs: dict[str, Any], *, shifts: bool) -> list[Tensor | None]:
    """Return which positions of each prediction count, of shape ``pred.shape[:-1]``; ``None`` where all do."""
    preds = tensors_of(outputs["pred"])
    if mask is None:
        return [_labelled_positions(batch, pred, shifts) for pred in preds]
    found = mask(batch, outputs) if callable(mask) else _field(batch, mask)
    masks = tensors_of(found) if isinstance(found, (Tensor, tuple, list, Mapping)) else []
    if len(masks) in (1, len(preds)):
        return [*masks] if len(masks) > 1 else [*masks] * len(preds)
    names = f"the fields {sorted(map(str, batch))}" if isinstance(batch, Mapping) else "no field by name"
    raise ValueError(
        f"Expected `mask` ({mask!r}) to give a tensor of shape {tuple(preds[0].shape[:-1])}, but got "
        f"{type(found).__name__}; the batch holds {names}."
    )


def _labelled_positions(batch: Any, pred: Tensor, shifts: bool) -> Tensor | None:
    for labels in labels_in(batch) if pred.ndim > 2 else ():
        if labels.shape == pred.shape[:-1] and not labels.is_floating_point():
            return (shifted(labels) if shifts else labels) != IGNORED
    return None


def labels_in(batch: Any) -> list[Tensor]:
    """Return the fields of a batch that are named after labels."""
    found = [_field(batch, name) for name in LABELS]
    return [value for value in found if isinstance(value, Tensor)]


def shifted(labels: Tensor) -> Tensor:
    """Return the label of the next position for each position."""
    return F.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def shifts_labels(model: nn.Module) -> bool:
    """Tell whether a model is, or holds, a causal language model of transformers, which shifts its labels."""
    return any(base.__name__.endswith(_CAUSAL) for module in model.modules() for base in type(module).__mro__)


def _field(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else None
