"""How each example of a batch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..regularizers.outputs import IGNORED, LABELS, read_outputs

__all__ = ["Loss", "Scores", "averages", "score"]

#: takes the outputs and the batch, returns a loss for each example
Loss = Callable[[Any, Any], Tensor]


@dataclass
class Scores:
    """
    How each example of a batch does.

    :param losses: its loss, of shape ``(examples,)``, in double precision.
    :param errors: how many of its labels are predicted wrong; 0 where that is not known.
    :param labels: how many labels it has; 0 where that is not known.
    :param heights: what the attack ascends on, a rising function of the loss.
    """

    losses: Tensor
    errors: Tensor
    labels: Tensor
    heights: Tensor


def score(outputs: Any, batch: Any, labels: str | None = None, loss: Loss | None = None) -> Scores:
    """
    The scores of a batch, by cross entropy or by a loss of your own.

    :param outputs: what the model returned: a tensor of logits, or a dict, dataclass or ``ModelOutput`` with ``pred``
        or ``logits``, of shape ``(examples, classes)`` or ``(examples, positions, classes)``.
    :param batch: what it was given.
    :param labels: the field of the batch with the labels; ``labels``, ``label``, ``targets`` or ``target`` if ``None``.
        They are integers of shape ``(examples,)`` or
        ``(examples, positions)``; -100 does not count. The loss of an example is the mean over its labels.
    :param loss: a function of ``(outputs, batch)`` that returns a loss for each example, instead.
    :return: the scores.
    :raises ValueError: if there are no logits or labels, or their shapes do not fit.

    Example::

        >>> found = score(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), {"labels": torch.tensor([0, 1])})
        >>> found.losses.round(decimals=4), found.errors
        (tensor([0.6931, 1.3133], dtype=torch.float64), tensor([0, 1]))
    """
    if loss is not None:
        losses = loss(outputs, batch)
        if losses.dim() != 1:
            raise ValueError(
                f"Expected `loss` to return a value for each example, but got shape {tuple(losses.shape)}. Compute it "
                "with `reduction='none'` and average over everything but the examples."
            )
        unknown = torch.zeros_like(losses, dtype=torch.long)
        return Scores(losses.double(), unknown, unknown, losses)
    entries = {"pred": outputs} if isinstance(outputs, Tensor) else outputs
    logits = read_outputs(entries, needs_loss=False)["pred"]
    target = _labels(batch, labels, logits.device)
    if target.is_floating_point() or logits.shape[:-1] != target.shape:
        raise ValueError(
            "Expected logits of shape (examples, classes) or (examples, positions, classes) and integer labels of the "
            f"same shape without classes, but got {tuple(logits.shape)} and {tuple(target.shape)} of {target.dtype}. "
            "Give `loss`, a function of (outputs, batch) that returns a value for each example."
        )
    counted = (target != IGNORED).view(len(target), -1)
    wrong = (logits.argmax(-1) != target).view(counted.shape) & counted
    each = torch.where(counted, _cross_entropy(logits.double(), target).view(counted.shape), 0)
    losses = each.sum(1) / counted.sum(1).clamp(min=1)
    # The logarithm has the same direction, but its gradient does not vanish where the prediction is confident. A model
    # would look robust for that alone.
    return Scores(losses, wrong.sum(1), counted.sum(1), losses.log())


def averages(loss: float, examples: float, errors: float, labels: float) -> dict[str, float]:
    """
    What is reported of sums over examples.

    :param loss: the sum of their losses.
    :param examples: how many there are.
    :param errors: how many labels were predicted wrong.
    :param labels: how many labels there are.
    :return: ``loss`` and, where labels are known, ``accuracy``.

    Example::

        >>> averages(3.0, 2, 1, 4)
        {'loss': 1.5, 'accuracy': 0.75}
    """
    return {"loss": loss / examples, **({"accuracy": 1 - errors / labels} if labels else {})}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """From the log-odds of the other classes, which keeps losses down to 1e-300 where 1 - p keeps 1e-16."""
    own = target.clamp(min=0).long().unsqueeze(-1)
    others = logits.scatter(-1, own, float("-inf")).logsumexp(-1)
    return nn.functional.softplus(others - logits.gather(-1, own).squeeze(-1))


def _labels(batch: Any, name: str | None, device: torch.device) -> Tensor:
    known = LABELS if name is None else (name,)
    for each in known:
        if isinstance(batch, Mapping) and each in batch:
            return torch.as_tensor(batch[each], device=device)
    found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
    expected = "a field of the batch" if name is not None else f"the field that holds the labels, one of {LABELS}"
    raise ValueError(
        f"Expected `labels` to name {expected}, but got {name!r} with {found}. Name the field that holds them, or give "
        "`loss`, a function of (outputs, batch) that returns a value for each example."
    )
