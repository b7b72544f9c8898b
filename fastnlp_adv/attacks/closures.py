"""The closures of plain training loops."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def run_closure(closure: Any, *args: Any) -> Tensor:
    """Return the loss that a closure computes; raise ``TypeError`` for anything else."""
    if not callable(closure):
        raise TypeError(
            f"Expected `closure` to be a function that returns the loss, but got {type(closure).__name__}. Give a "
            "function, as `lambda: loss_of(model(ids), labels)`, since each pass runs the model."
        )
    loss = closure(*args)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(
            f"Expected the closure to return the loss, a tensor of one element, but got {found}. Return "
            "`outputs.loss` or `outputs['loss']` where the model computes it, without `item()`."
        )
    return loss
