"""R-Drop: two predictions of one batch under different dropout should agree."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from .. import forwards
from ..batch import double_batch, fields_of, first_half, scale_counts
from ..method import Cost
from ..options import check_number, one_of, option, options
from .base import Forward, Predictions, add_term
from .outputs import IGNORED, read_outputs, shifted, tensors_of


@options
class RDrop(Predictions):
    r"""
    The loss of R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks",
    https://arxiv.org/abs/2106.14448):

    .. math:: \frac{L_1 + L_2}{2} + \lambda\, D(P_1, P_2), \qquad D = \frac{KL(P_1 \| P_2) + KL(P_2 \| P_1)}{2}

    where :math:`L_i` and :math:`P_i` are loss and prediction of two forwards of the same batch.

    :param model: not needed, unless a step returns the logits of a causal language model of transformers in a dict of
        its own; see ``mask``.
    :options:
    :raises ValueError: if an argument is out of its range.

    Example::

        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
        >>> def step(batch):
        ...     pred = model(batch["x"])
        ...     return {"loss": torch.nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred}
        >>> rdrop = RDrop(kl_weight=1.0)
        >>> outputs = rdrop(step, {"x": torch.randn(8, 4), "labels": torch.arange(8) % 3})
        >>> outputs["loss"].backward()
        >>> outputs["pred"].shape, bool(outputs["kl"] > 0)
        (torch.Size([8, 3]), True)
    """

    kl_weight: float = option(
        default=1.0, check=check_number, doc="the weight :math:`\\lambda` of the divergence", kw_only=False
    )
    mode: Literal["concat", "two_pass"] = option(
        default="concat",
        check=one_of("concat", "two_pass"),
        doc='``"concat"``, one forward of the batch doubled along its first dimension; the loss must be a mean over '
        'the examples, or one value for each. ``"two_pass"``, two forwards: for a summed loss, BatchNorm or '
        "contrastive losses (which mix examples), and for batches or predictions that are not laid out by example",
    )

    paper = "https://arxiv.org/abs/2106.14448"
    name = "kl"
    innermost = True
    needs_model = False

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 0) if self.mode == "concat" else Cost(2, 2, 0)

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        """
        Run ``objective`` on the batch twice, or once on the doubled batch, and combine the losses.

        :return: the outputs of the first forward (of the first half) as a dict, with the combined ``loss`` and, unless
            the model itself uses these names, ``pred2``, the second prediction, and ``kl``, the divergence, unweighted
            and detached.
        :raises ValueError: if the outputs lack a loss or a prediction, or the batch cannot be doubled.
        """
        run = self._concat if self.mode == "concat" else self._two_pass
        outputs, pred2, returned = run(objective, batch)
        if not self.has_looked and self.divergence == "categorical" and _are_probabilities(outputs["pred"]):
            warnings.warn(
                "R-Drop expects `pred` to hold logits, but got rows that are positive and sum to 1, as after a "
                "softmax. A second softmax, in the divergence, makes all predictions nearly equal. Return the logits.",
                stacklevel=2,
            )
        kl = self.distance(outputs["pred"], pred2, self.masks(batch, outputs, returned))
        return add_term({"pred2": pred2, **outputs}, self.name, self.kl_weight, kl)

    def _two_pass(self, forward: Forward, batch: Any) -> tuple[dict[str, Any], Any, Any]:
        returned = [forwards.run(forward, batch, bare=True, last=last) for last in (False, True)]
        first, second = (read_outputs(each, several=True) for each in returned)
        return {**first, "loss": (first["loss"] + second["loss"]) / 2}, second["pred"], returned[0]

    def _concat(self, forward: Forward, batch: Any) -> tuple[dict[str, Any], Any, Any]:
        doubled, rows = double_batch(batch)
        scaled = scale_counts(doubled, 2)
        try:
            returned = forwards.run(forward, scaled, copies=2, rows=rows, bare=True)
        except RuntimeError as error:
            if "enforce_sorted" not in str(error):
                raise
            raise RuntimeError(
                "Expected the model to take the doubled batch, but got an error, since examples are no longer sorted "
                "by length. Use mode='two_pass', or call `pack_padded_sequence` with `enforce_sorted=False`."
            ) from error
        outputs = read_outputs(returned, several=True)
        for pred in tensors_of(outputs["pred"]):
            if pred.shape[:1] != (2 * rows,):
                raise ValueError(
                    f"Expected `pred` to have {2 * rows} rows, two for each of the {rows} examples, but got shape "
                    f"{tuple(pred.shape)}. Where examples are not the first dimension of `pred`, use mode='two_pass'."
                )
        if not self.has_looked and scaled is doubled and _doubles(outputs, doubled, forward, batch):
            warnings.warn(
                "R-Drop with mode='concat' expects a loss that is a mean over the examples, but got one that is "
                "twice as large on the doubled batch, such as a sum. Return the mean, or use mode='two_pass'.",
                stacklevel=2,
            )
        return first_half(outputs, rows), _second_half(outputs["pred"], rows), returned


def _second_half(pred: Any, rows: int) -> Any:
    if isinstance(pred, Tensor):
        return pred[rows:]
    return {k: pred[k][rows:] for k in pred} if isinstance(pred, Mapping) else tuple(each[rows:] for each in pred)


def _are_probabilities(pred: Any) -> bool:
    rows = [each.detach().float() for each in tensors_of(pred) if each.shape[-1] > 1 and len(each) > 0]
    return any(bool((each >= 0).all() & ((each.sum(-1) - 1).abs() < 0.01).all()) for each in rows)


@torch.no_grad()
def _doubles(outputs: dict[str, Any], doubled: Any, forward: Forward, batch: Any) -> bool:
    """Tell whether the loss of a doubled batch is twice the batch's, by another forward unless it is a usual one."""
    loss, preds = outputs["loss"].float(), [each.float() for each in tensors_of(outputs["pred"])]
    fields = [field for _, field in fields_of(doubled) if isinstance(field, Tensor)]
    totals = [each for pred in preds for field in fields for each in _sums(pred, field)]
    if any(_same(loss, total / max(terms, 1)) for total, terms in totals):
        return False
    if any(_same(loss, total) for total, _ in totals):
        return True
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return False  # other ranks may know their loss, and would not run another forward
    # with gradients on, since a model may differentiate in its forward
    with torch.random.fork_rng([loss.device] if loss.is_cuda else []), torch.enable_grad():
        once = read_outputs(forwards.run(forward, batch, bare=True), several=True)["loss"].detach().float()
    return bool((loss - 2 * once).abs() < 0.3 * once.abs())


def _same(loss: Tensor, other: Tensor) -> bool:
    return bool((loss - other).abs() <= 1e-4 * other.abs())


def _sums(pred: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield the usual losses summed over the batch, each with the number of its terms."""
    if labels.shape == pred.shape[:-1] and not labels.is_floating_point():
        for targets in (labels, shifted(labels)):
            counted = targets != IGNORED
            if bool((~counted | ((targets >= 0) & (targets < pred.shape[-1]))).all()):
                total = F.cross_entropy(pred[counted], targets[counted].long(), reduction="sum")
                yield total, int(counted.sum())
    elif labels.shape == pred.shape:
        target = labels.float()
        yield F.mse_loss(pred, target, reduction="sum"), labels.numel()
        yield F.binary_cross_entropy_with_logits(pred, target, reduction="sum"), labels.numel()


def has_dropout(model: nn.Module) -> bool:
    """
    Tell whether a model has dropout: ``torch.nn``'s, also between the layers of recurrent ones, or numbers above 0 in
    attributes named after dropout (``attention_dropout``, ``drop_prob``, ``layerdrop``).
    """
    return any(_drops(module) for module in model.modules())


def warn_without_dropout(model: nn.Module) -> None:
    """Warn if ``model`` has no dropout."""
    if not has_dropout(model):
        warnings.warn(
            f"R-Drop found no dropout above 0 in {type(model).__name__}: both predictions are the same and their "
            "divergence is 0. Give the model dropout, or train it without R-Drop.",
            stacklevel=2,
        )


def _drops(module: nn.Module) -> bool:
    attributes = vars(module)
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:  # it drops between its layers only
        attributes = {**attributes, "dropout": 0.0}
    named = "drop" in type(module).__name__.lower()
    return any(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        for name, value in attributes.items()
        if "drop" in re.sub("^rdrop_", "", name.lower()) or (named and name == "p")
    )
