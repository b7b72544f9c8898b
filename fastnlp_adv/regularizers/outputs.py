"""What a training step returned: its loss and its prediction, whatever holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["read_loss", "read_outputs"]

_WANTED = "a dict or dataclass with `loss` and `pred` (or `logits`)"


def read_outputs(outputs: Any, *, needs_loss: bool = True) -> dict[str, Any]:
    """
    A new dict of the outputs, in which ``loss`` is one number and ``pred`` the prediction as floating-point values.

    :param outputs: a dict, a dataclass or a ``ModelOutput`` of transformers. The prediction is ``pred``, or ``logits``
        where there is no ``pred`` or it holds integers.
    :param needs_loss: whether to refuse outputs without a loss, as they are for a batch without labels.
    :return: all entries of ``outputs``; a ``loss`` with dimensions (one value for each example) is averaged.
    :raises ValueError: if there is no loss or no prediction that a divergence can be computed from.

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
    """
    As :func:`read_outputs`, for methods that need no prediction.

    :param outputs: a dict, a dataclass or a ``ModelOutput`` of transformers.
    :return: all entries of ``outputs``; a ``loss`` with dimensions (one value for each example) is averaged.
    :raises ValueError: if there is no loss.
    """
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
    candidates = [entries[name] for name in ("pred", "logits") if isinstance(entries.get(name), Tensor)]
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
