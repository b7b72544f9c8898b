"""R-Drop: two predictions of one batch under different dropout should agree."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from .. import divergences, forwards
from ..batch import double_batch, first_half
from ..method import Cost
from ..options import check_number, one_of, option, options
from .base import Forward, Predictions, Regularizer, add_term
from .misuse import warn_of_misuse, warn_of_misuse_of_concat
from .outputs import find_mask, read_outputs

__all__ = ["RDrop"]


@options
class RDrop(Predictions, Regularizer):
    r"""
    The loss of R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks",
    https://arxiv.org/abs/2106.14448):

    .. math:: \frac{L_1 + L_2}{2} + \lambda\, D(P_1, P_2), \qquad D = \frac{KL(P_1 \| P_2) + KL(P_2 \| P_1)}{2}

    where :math:`L_i` and :math:`P_i` are loss and prediction of two forwards of the same batch.

    :param model: not needed; a model to :meth:`attach` to is checked for dropout.
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

    def _forget(self) -> None:
        super()._forget()
        #: whether the first batch, in which some misuse shows, is over
        self.has_looked = False

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 0) if self.mode == "concat" else Cost(2, 2, 0)

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        """
        Run ``objective`` on the batch twice, or once on the doubled batch, and combine the losses.

        :return: the outputs of the first forward (of the first half) as a dict, in which ``loss`` is the combined loss
            and ``pred`` the first prediction; besides, unless the model itself uses these names, ``pred2``, the second
            prediction, and ``kl``, the divergence, unweighted and detached.
        :raises ValueError: if the outputs lack a loss or a prediction, or the batch cannot be doubled.
        """
        run = self._concat if self.mode == "concat" else self._two_pass
        outputs, pred2 = run(objective, batch)
        if not self.has_looked:  # reads the device, so the first batch alone
            warn_of_misuse(outputs["pred"], self.divergence)
            self.has_looked = True
        kl = divergences.divergence(
            outputs["pred"],
            pred2,
            kind=self.divergence,
            reduction=self.reduction,
            mask=find_mask(self.mask, batch, outputs),
        )
        return add_term({"pred2": pred2, **outputs}, self.name, self.kl_weight, kl)

    def _two_pass(self, forward: Forward, batch: Any) -> tuple[dict[str, Any], Tensor]:
        first, second = (read_outputs(forwards.run(forward, batch, bare=True, last=last)) for last in (False, True))
        return {**first, "loss": (first["loss"] + second["loss"]) / 2}, second["pred"]

    def _concat(self, forward: Forward, batch: Any) -> tuple[dict[str, Any], Tensor]:
        doubled, rows = double_batch(batch)
        try:
            returned = forwards.run(forward, doubled, copies=2, rows=rows, bare=True)
        except RuntimeError as error:
            if "enforce_sorted" not in str(error):
                raise
            raise RuntimeError(
                "Expected the model to take the doubled batch, but got an error, since examples are no longer sorted "
                "by length. Use mode='two_pass', or call `pack_padded_sequence` with `enforce_sorted=False`."
            ) from error
        outputs = read_outputs(returned)
        pred = outputs["pred"]
        if pred.shape[:1] != (2 * rows,):
            raise ValueError(
                f"Expected `pred` to have {2 * rows} rows, two for each of the {rows} examples, but got shape "
                f"{tuple(pred.shape)}. Where examples are not the first dimension of `pred`, use mode='two_pass'."
            )
        if not self.has_looked:
            warn_of_misuse_of_concat(outputs["loss"], pred, doubled, rows)
        return first_half(outputs, rows), pred[rows:]
