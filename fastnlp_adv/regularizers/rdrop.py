"""R-Drop: two predictions of one batch under different dropout should agree."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from .. import divergences, forwards
from ..arguments import Arguments, Cost, argument, arguments, shared
from ..batch import double_batch, first_half
from .base import Forward, Regularizer, add_term
from .misuse import warn_of_misuse, warn_of_misuse_of_concat
from .outputs import find_mask, read_outputs

__all__ = ["RDrop", "RDropArguments"]


@arguments
class RDropArguments(Arguments):
    kl_weight: float = argument(1.0, "the weight :math:`\\lambda` of the divergence")
    reduction: shared.Reduction = shared.reduction()
    divergence: shared.Divergence = shared.divergence()
    mode: Literal["concat", "two_pass"] = argument(
        "concat",
        '``"concat"``, one forward of the batch doubled along its first dimension; the loss must be a mean over the '
        'examples, or one value for each. ``"two_pass"``, two forwards: for a summed loss, BatchNorm or contrastive '
        "losses (which mix examples), and for batches or predictions that are not laid out by example",
    )
    mask: shared.Mask = shared.mask()

    @property
    def cost(self) -> Cost:
        """The passes of a step."""
        return Cost(1, 1, 0) if self.mode == "concat" else Cost(2, 2, 0)


@arguments
class RDrop(RDropArguments, Regularizer):
    r"""
    The loss of R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks",
    https://arxiv.org/abs/2106.14448):

    .. math:: \frac{L_1 + L_2}{2} + \lambda\, D(P_1, P_2), \qquad D = \frac{KL(P_1 \| P_2) + KL(P_2 \| P_1)}{2}

    where :math:`L_i` and :math:`P_i` are loss and prediction of two forwards of the same batch.

    :arguments:
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

    paper = "https://arxiv.org/abs/2106.14448"

    name = "kl"
    innermost = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.set_up(None, [])
        #: whether the first batch, in which some misuse shows, is over
        self.has_looked = False

    def __call__(self, objective: Forward, batch: Any, forward: Forward | None = None) -> dict[str, Any]:
        """
        Run ``objective`` on the batch twice, or once on the doubled batch, and combine the losses.

        :param objective: takes a batch and returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or
            ``logits``), floating-point logits or values of shape ``(examples, ...)``.
        :param batch: what ``objective`` takes.
        :param forward: not needed.
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
