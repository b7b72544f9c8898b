"""Divergences between two predictions of the same examples.

Every function takes predictions (logits, or values for a regression) and stays on the device of its inputs, without
host-device synchronization. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import one_of

DIVERGENCES = ("categorical", "bernoulli", "mse")
REDUCTIONS = ("batchmean", "sum", "mean")


def categorical(p: Tensor, q: Tensor, *, symmetric: str | None = "mean") -> Tensor:
    r"""
    Return the terms :math:`p_c (\log p_c - \log q_c)` of the KL divergence between two categorical distributions, given
    as logits over the last dimension: one for each class, of the shape of ``p``. A class that is impossible in both
    (its logit is ``-inf``) adds 0 and gets a gradient of 0.
    """
    if p.ndim < 2 or p.shape[-1] < 2:
        raise ValueError(
            "Expected `p` to be logits of shape (examples, ..., classes) with at least 2 classes for the divergence "
            f"'categorical', but got shape {tuple(p.shape)}. Use 'bernoulli' for one logit a label, 'mse' for a "
            "regression."
        )
    return _kl_terms(_log_probabilities(p), _log_probabilities(q), symmetric)


def bernoulli(p: Tensor, q: Tensor, *, symmetric: str | None = "mean") -> Tensor:
    """Return the KL divergence between the Bernoulli distributions of each logit, as in multi-label classification."""
    p, q = _full_precision(p), _full_precision(q)
    yes = _kl_terms(F.logsigmoid(p), F.logsigmoid(q), symmetric)
    no = _kl_terms(F.logsigmoid(-p), F.logsigmoid(-q), symmetric)
    return yes + no


def mse(p: Tensor, q: Tensor, *, symmetric: str | None = "mean") -> Tensor:
    """Return the squared differences, for regression; both directions are equal, so only ``"sum"`` doubles them."""
    squares = (_full_precision(p) - _full_precision(q)).square()
    return 2 * squares if symmetric == "sum" else squares


def reduce(values: Tensor, reduction: str = "batchmean", mask: Tensor | None = None) -> Tensor:
    """Reduce the values of a divergence, of shape ``(examples, ...)``, to one number; see :func:`divergence`."""
    if reduction not in REDUCTIONS:
        one_of(REDUCTIONS)("reduction", reduction)
    if mask is None:
        count = {"batchmean": values.shape[0], "sum": 1, "mean": values.numel()}[reduction]
        return values.sum() / max(count, 1)
    keep = _spread(mask, values)
    total = torch.where(keep, values, 0).sum()
    if reduction == "sum":
        return total
    counted = keep.expand_as(values) if reduction == "mean" else keep
    return total / counted.sum().clamp(min=1)


def divergence(
    p: Tensor,
    q: Tensor,
    *,
    kind: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
    reduction: str = "batchmean",
    mask: Tensor | None = None,
    symmetric: str | None = "mean",
) -> Tensor:
    """Return the divergence between two predictions, reduced to one number.

    :param p: prediction of shape ``(examples, ...)``, floating point.
    :param q: prediction of the same shape.
    :param kind: ``"categorical"``, ``"bernoulli"``, ``"mse"``, or a callable that takes ``p`` and ``q`` (float32 or
        float64, 0 at masked positions) and returns either values of the shape of ``p`` or of ``p.shape[:-1]``, which
        are reduced like the others, or a tensor of no dimensions, which is returned unchanged and cannot be masked.
    :param reduction: ``"batchmean"`` divides the sum by the number of examples or, with a mask, by the number of
        entries that the mask keeps; ``"sum"`` does not divide; ``"mean"`` divides by the number of (kept) elements,
        classes included.
    :param mask: bool or 0-1 tensor of shape ``p.shape[:-1]``, true at the positions that count; for other kinds than
        ``"categorical"`` also of shape ``p.shape``. Masked positions change neither the value nor the gradients.
    :param symmetric: ``"mean"`` of both directions, their ``"sum"``, or ``None`` for the direction from ``p`` to ``q``.
        A callable ``kind`` is called once and ignores it.
    :return: a tensor of no dimensions.
    :raises ValueError: if an argument is unknown, or shapes or types do not fit.

    Example::

        >>> p, q = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)  # the same distribution: a shift changes nothing
        >>> divergence(p, q, mask=torch.tensor([[1, 1, 0], [1, 0, 0]])).item()
        0.0
        >>> divergence(p, q, kind="mse", mask=torch.tensor([[1, 1, 0], [1, 0, 0]])).item()
        4.0
    """
    _check_predictions(p, q)
    if symmetric not in ("mean", "sum", None):
        raise ValueError(f"Expected `symmetric` to be 'mean', 'sum' or None, but got {symmetric!r}.")
    p, q = _full_precision(p), _full_precision(q)
    if mask is not None:
        # The inputs are masked too: 0 times the slope at a NaN is still NaN.
        keep = _spread(mask, p, whole=kind != "categorical" or p.ndim == 1)
        p, q = torch.where(keep, p, 0), torch.where(keep, q, 0)
    if not callable(kind):
        if kind not in DIVERGENCES:
            one_of(DIVERGENCES)("kind", kind)
        elementwise = {"categorical": categorical, "bernoulli": bernoulli, "mse": mse}[kind]
        return reduce(elementwise(p, q, symmetric=symmetric), reduction, mask)
    values = kind(p, q)
    if not isinstance(values, Tensor) or (values.ndim == 0 and mask is not None):
        raise ValueError(
            f"Expected the divergence {kind!r} to return a tensor of shape {tuple(p.shape)} or {tuple(p.shape[:-1])} "
            f"that a mask can be applied to, but got {values!r}. Return unreduced values (reduction='none')."
        )
    return values if values.ndim == 0 else reduce(values, reduction, mask)


def _kl_terms(log_p: Tensor, log_q: Tensor, symmetric: str | None) -> Tensor:
    """Return ``p (log p - log q)``, or for both directions ``(p - q) (log p - log q)``, each event for itself."""
    p, q = log_p.exp(), log_q.exp()
    # An impossible event adds 0 by definition, where -inf - (-inf) would be NaN.
    impossible = p == 0 if symmetric is None else (p == 0) & (q == 0)
    difference = torch.where(impossible, 0, log_p - log_q)
    if symmetric is None:
        return p * difference
    return (p - q) * difference * (0.5 if symmetric == "mean" else 1.0)


def _log_probabilities(logits: Tensor) -> Tensor:
    logits = _full_precision(logits)
    # log_softmax is NaN where every class is ruled out; both distributions are uniform there, and their divergence 0.
    ruled_out = logits.detach().amax(-1, keepdim=True) == -torch.inf
    return F.log_softmax(logits.masked_fill(ruled_out, 0), dim=-1)


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _spread(mask: Tensor, values: Tensor, whole: bool = True) -> Tensor:
    """Return the mask as a bool tensor that broadcasts over ``values``; ``whole`` allows one entry for each element."""
    if whole and mask.shape == values.shape:
        return mask != 0
    positions = values.shape[:-1] or values.shape
    if mask.shape != positions:
        raise ValueError(f"Expected `mask` to have shape {tuple(positions)}, but got {tuple(mask.shape)}.")
    return (mask != 0).unsqueeze(-1)


def _check_predictions(p: Tensor, q: Tensor) -> None:
    if not (p.is_floating_point() and q.is_floating_point()):
        raise ValueError(
            f"Expected predictions to be floating-point logits or values, but got {p.dtype} and {q.dtype}."
        )
    if p.shape != q.shape or p.ndim == 0:
        raise ValueError(
            f"Expected both predictions to have the same shape (examples, ...), but got {tuple(p.shape)} and "
            f"{tuple(q.shape)}."
        )
