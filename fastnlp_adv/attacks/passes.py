"""The arguments about the passes of a step, and the closures of plain loops, which run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..method import Cost, DropoutMask, Method, SharesDropout
from ..options import Options, check_flag, check_number, option, optional, options


@options
class AdversarialLoss(Options):
    """Trains on a clean and an adversarial loss, or on the adversarial loss only."""

    adv_weight: float = option(
        default=1.0,
        check=check_number,
        doc="the weight of the adversarial loss; in a plain loop with ``attack`` you apply it yourself",
    )
    replace: bool = option(
        default=False,
        check=check_flag,
        doc="train on the adversarial loss only; the first pass then computes no parameter gradients",
    )


def _check_inner_autocast(name: str, value: Any) -> None:
    if value is not torch.bfloat16:
        raise ValueError(
            f"Expected `{name}` to be None or torch.bfloat16, but got {value!r}. bfloat16 has the range of float32; in "
            "float16 small gradients would be 0."
        )


@options
class InnerPrecision(Method):
    """Runs passes that do not train in a lower precision."""

    inner_autocast: torch.dtype | None = option(
        default=None,
        check=optional(_check_inner_autocast),
        doc="``torch.bfloat16`` runs the model in this precision, under autocast, in the passes that do not train, of "
        "which only the direction of a gradient is used; ``None`` for the precision of the other passes. An autocast "
        "that the model or the Trainer (``fp16=True``) enters itself takes precedence",
    )

    def validate(self) -> None:
        super().validate()
        if self.inner_autocast is not None and not self.cost.inner:
            raise ValueError(
                f"Expected `inner_autocast` to be None, since every pass of a step trains, but got "
                f"{self.inner_autocast!r}. Remove it, or use `replace=True`, or PGD with more `steps`."
            )


class TwoPasses(SharesDropout, InnerPrecision):
    """A clean pass, which gives the direction, and an adversarial one, of which one may be on a part of the batch."""

    fraction: float
    replace: bool
    has_two_losses: ClassVar[bool] = True

    @property
    def cost(self) -> Cost:
        return Cost(2, 2 - self.replace, int(self.replace))

    def validate(self) -> None:
        super().validate()
        check_masks_fit(self.fraction, self.dropout_mask)


def check_masks_fit(fraction: float, dropout_mask: DropoutMask) -> None:
    """Raise ``ValueError`` if passes on the whole batch and on a part of it are to share a dropout mask."""
    if fraction < 1 and dropout_mask != "new":
        raise ValueError(
            f"Expected `dropout_mask` to be 'new' with a `fraction` below 1, but got {dropout_mask!r}: the "
            "attacked rows and the batch have masks of different shapes. Remove it, or use `fraction=1`."
        )


def run_closure(closure: Any, *args: Any) -> Tensor:
    """Return the loss that a closure computes; raise ``TypeError`` for anything else."""
    if not callable(closure):
        raise TypeError(
            f"Expected `closure` to be a function that returns the loss, but got {type(closure).__name__}. Give a "
            "function, as `lambda: loss_of(model(ids), labels)`, since each pass runs the model."
        )
    loss = closure(*args)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = type(loss).__name__
        if isinstance(loss, Tensor):
            found = "one without a graph" if loss.numel() == 1 else f"a tensor of shape {tuple(loss.shape)}"
        raise TypeError(
            f"Expected the closure to return the loss, a tensor of one element, but got {found}. Return "
            "`outputs.loss` or `outputs['loss']` where the model computes it with gradients on, without `item()` or "
            "`detach()`."
        )
    return loss


@contextmanager
def named_reuse() -> Iterator[None]:
    """Name the cause where a closure returns a graph that a backward pass has freed."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" not in str(error):
            raise
        raise RuntimeError(
            "Expected `closure` to run the model and return the loss, but its graph was freed by another backward "
            "pass. Remove `loss.backward()` from the closure, since a step runs it in each pass, and compute inside "
            "it everything that has gradients."
        ) from error
