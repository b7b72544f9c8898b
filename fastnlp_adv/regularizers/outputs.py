"""Reads the outputs of a training step: the loss, the prediction, and which of its positions count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["IGNORED", "LABELS", "Mask", "find_mask", "labels_in", "read_loss", "read_outputs"]

#: a batch key, or a function of batch and outputs
Mask = str | Callable[..., Any] | None

_WANTED = "a dict or dataclass with `loss` and `pred` (or `logits`)"


def read_outputs(outputs: Any, *, needs_loss: bool = True) -> dict[str, Any]:
    """
    Return a new dict of the outputs: ``loss`` as one number, and ``pred``, which is ``logits`` where there is no
    ``pred`` or it holds integers.

    Example::

        >>> import torch
        >>> entries = read_outputs({"loss": torch.tensor([1.0, 3.0]), "logits": torch.zeros(2, 5)})
        >>> entries["loss"], entries["pred"].shape
        (tensor(2.), torch.Size([2, 5]))
    """
    entries = _as_dict(outputs)
    if needs_loss or entries.get("loss") is not None:
        entries["loss"] = _loss(entries)
    return {**entries, "pred": _prediction(entries)}


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


def _prediction(entries: dict[str, Any]) -> Tensor:
    candidates: list[Tensor] = [entries[name] for name in ("pred", "logits") if isinstance(entries.get(name), Tensor)]
    for candidate in candidates:
        if candidate.is_floating_point():
            return candidate
    if candidates:
        raise ValueError(
            f"Expected `pred` to hold floating-point logits or values, but got {candidates[0].dtype}. Return what the "
            "argmax was taken of; `evaluate_step` can still return the argmax."
        )
    raise ValueError(
        f"Expected the training step to return {_WANTED}, but got the entries {sorted(map(str, entries))}. Return the "
        "logits as `pred`, or name them with the Trainer's `output_mapping`."
    )


#: where token labels are looked for, and the label that cross entropy ignores
LABELS = ("labels", "label", "targets", "target")
IGNORED = -100


def find_mask(mask: Mask, batch: Any, outputs: dict[str, Any]) -> Tensor | None:
    """Return which positions of ``pred`` count, as a tensor of shape ``pred.shape[:-1]``; ``None`` for all."""
    if mask is None:
        return _labelled_positions(batch, outputs["pred"])
    found = mask(batch, outputs) if callable(mask) else _field(batch, mask)
    if isinstance(found, Tensor):
        return found
    names = f"the fields {sorted(map(str, batch))}" if isinstance(batch, Mapping) else "no field by name"
    raise ValueError(
        f"Expected `mask` ({mask!r}) to give a tensor of shape {tuple(outputs['pred'].shape[:-1])}, but got "
        f"{type(found).__name__}; the batch holds {names}."
    )


def _labelled_positions(batch: Any, pred: Tensor) -> Tensor | None:
    for labels in labels_in(batch) if pred.ndim > 2 else ():
        if labels.shape == pred.shape[:-1] and not labels.is_floating_point():
            return labels != IGNORED
    return None


def labels_in(batch: Any) -> list[Tensor]:
    """Return the fields of a batch that are named after labels."""
    found = [_field(batch, name) for name in LABELS]
    return [value for value in found if isinstance(value, Tensor)]


def _field(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else None
