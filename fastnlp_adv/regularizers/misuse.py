"""What a first batch tells about a use of R-Drop that trains something else than is meant.

Telling reads the device, so R-Drop looks at its first batch alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..batch import fields_of
from .outputs import IGNORED, labels_in

__all__ = ["warn_of_misuse", "warn_of_misuse_of_concat"]


def warn_of_misuse(pred: Tensor, divergence: Any) -> None:
    """
    Warn where probabilities stand in the place of logits.

    :param pred: the prediction, of shape ``(..., classes)``.
    :param divergence: see :class:`~fastnlp_adv.regularizers.RDrop`.
    """
    if divergence != "categorical" or pred.shape[-1] < 2:
        return
    values = pred.detach().float()
    if bool(((values >= 0).all(-1) & ((values.sum(-1) - 1).abs() < 0.01)).all()):
        warnings.warn(
            "R-Drop expects `pred` to hold logits, but got rows that are positive and sum to 1, as after a softmax. "
            "The divergence takes a softmax itself, and a second one makes all predictions nearly alike. Return what "
            "the softmax was taken of.",
            stacklevel=2,
        )


@torch.no_grad()
def warn_of_misuse_of_concat(loss: Tensor, pred: Tensor, doubled: Any, rows: int) -> None:
    """
    Warn of losses that one forward of the doubled batch is not right for: sums, and those with negatives in the batch.

    :param loss: the loss of the doubled batch.
    :param pred: its prediction, of shape ``(2 * rows, ...)``.
    :param doubled: the batch.
    :param rows: the number of examples before doubling.
    """
    loss, pred = loss.detach().float(), pred.detach().float()
    if _is_contrastive(loss, pred, doubled, rows):
        warnings.warn(
            f"R-Drop with mode='concat' got `pred` of shape {tuple(pred.shape)} for {rows} examples, as of a loss that "
            "contrasts the examples of a batch. The doubled batch holds each of them twice, so the copy of a positive "
            "is one more negative. Use mode='two_pass'.",
            stacklevel=2,
        )
    elif any(terms > 1 and _same(loss, total) and total.abs() > 1e-6 for total, terms in _sums(pred, doubled)):
        warnings.warn(
            "R-Drop with mode='concat' expects a loss that is a mean over the examples, but got the sum, which the "
            "doubled batch makes twice as large. Return the mean, or use mode='two_pass'.",
            stacklevel=2,
        )


def _is_contrastive(loss: Tensor, pred: Tensor, doubled: Any, rows: int) -> bool:
    """
    Tell whether ``pred`` compares the examples with one another. As many classes as there are rows have the same shape,
    so the loss has to be the one of pairs; or the batch numbers them, or has nothing that could be classes.
    """
    if rows < 2 or pred.shape != (2 * rows, 2 * rows):
        return False
    own = torch.arange(2 * rows, device=pred.device)
    ways = [F.cross_entropy(pred, own), F.cross_entropy(pred.T, own)]
    differ = bool(F.cross_entropy(pred, own.roll(1)) - ways[0] > 1e-3)  # classes do not under a head of zeros
    if differ and any(_same(loss, each) for each in (*ways, (ways[0] + ways[1]) / 2)):
        return True
    fields = [value for _, value in fields_of(doubled) if isinstance(value, Tensor) and len(value) == 2 * rows]
    targets = [f for f in fields if f.shape == pred.shape or (f.dim() == 1 and not f.is_floating_point())]
    if not targets:
        return True
    numbered = torch.arange(rows, device=pred.device).repeat(2)
    return rows > 3 and any(f.shape == numbered.shape and bool((f == numbered).all()) for f in labels_in(doubled))


def _sums(pred: Tensor, doubled: Any) -> Iterator[tuple[Tensor, int]]:
    """Yield the usual losses summed over the batch, each with the number of its terms."""
    for labels in labels_in(doubled):
        if labels.shape == pred.shape[:-1] and not labels.is_floating_point():
            flat = pred.reshape(-1, pred.shape[-1])
            if bool(((labels == IGNORED) | ((labels >= 0) & (labels < pred.shape[-1]))).all()):
                total = F.cross_entropy(flat, labels.reshape(-1).long(), ignore_index=IGNORED, reduction="sum")
                yield total, int((labels != IGNORED).sum())
        elif labels.shape == pred.shape:
            target = labels.float()
            yield F.mse_loss(pred, target, reduction="sum"), labels.numel()
            yield F.binary_cross_entropy_with_logits(pred, target, reduction="sum"), labels.numel()


def _same(value: Tensor, other: Tensor) -> bool:
    return bool((value - other).abs() <= 1e-4 * other.abs())
