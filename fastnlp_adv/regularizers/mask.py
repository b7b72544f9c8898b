"""Which positions of a prediction count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..arguments.shared import Mask

__all__ = ["IGNORED", "LABELS", "find_mask"]

#: where token labels are looked for, and the label that cross entropy ignores
LABELS = ("labels", "label", "targets", "target")
IGNORED = -100


def find_mask(mask: Mask, batch: Any, outputs: dict[str, Any]) -> Tensor | None:
    """
    Which positions of a prediction count.

    :param mask: the key of a batch field, a callable of batch and outputs, or ``None`` to look at the labels.
    :param batch: the batch.
    :param outputs: the outputs, with ``pred``.
    :return: bool or 0-1, of shape ``pred.shape[:-1]``; ``None`` if all count.
    :raises ValueError: if ``mask`` gives no tensor.
    """
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
    if pred.ndim < 3:
        return None
    for name in LABELS:
        labels = _field(batch, name)
        if isinstance(labels, Tensor) and labels.shape == pred.shape[:-1] and not labels.is_floating_point():
            return labels != IGNORED
    return None


def _field(batch: Any, name: str) -> Any:
    return batch.get(name) if isinstance(batch, Mapping) else None
