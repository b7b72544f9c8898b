"""SMART: the prediction should be smooth around the input, and stay near that of the averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import forwards
from ..functional import group_norm, project
from ..method import Cost
from ..options import check_count, check_number, check_positive, check_up_to_1, option, options
from ..taps import Delta, Lookup, Tap, refuse_sharded
from .base import Forward, add_term
from .outputs import find_mask, read_outputs
from .perturbed import PerturbedRegularizer

__all__ = ["SMART"]


@options
class SMART(PerturbedRegularizer):
    r"""
    Smoothness-inducing adversarial regularization with Bregman proximal point optimization (Jiang et al. 2020, "SMART:
    Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled Regularized
    Optimization", https://arxiv.org/abs/1911.03437):

    .. math:: L + w\,D\bigl(p(e), p(e + d)\bigr) + \mu\,D\bigl(p_\theta(e), p_{\tilde\theta}(e)\bigr), \qquad
        d \leftarrow \Pi_\epsilon\bigl(d + \alpha\, g / \lVert g \rVert_\infty\bigr), \quad
        g = \nabla_d D\bigl(p(e), p(e + d)\bigr),

    where :math:`D` is the sum of both KL divergences, :math:`d` starts at :math:`N(0, \mathrm{noise}^2)` and takes
    ``steps`` ascent steps, :math:`\Pi_\epsilon` keeps each coordinate within ``epsilon``, and the norm is over each
    example. An example without a gradient, or with one that is not finite, keeps its perturbation. Gradients of the
    first divergence flow through both predictions. :math:`\tilde\theta \leftarrow \beta\tilde\theta + (1 -
    \beta)\theta` after each step of the optimizer (in a plain loop call :meth:`after_step`), held constant, of the
    parameters that require a gradient when this is built; nothing is kept of them if :math:`\mu` is 0.

    A step costs ``2 + steps`` forward passes, one backward pass through two of them, and ``steps`` backward passes that
    end at the embeddings: 2 + 2/3 plain steps by default. With ``bregman_weight`` one forward pass more.

    The paper has ``epsilon=1e-5, alpha=1e-3, noise=1e-5``, which is so little that with one dropout mask for all passes
    two predictions differ by about 1e-5 or less: float32 can resolve that to a few percent, float16 and bfloat16 not at
    all. With a new mask in each pass, the term is then the divergence between the masks, as in R-Drop. The defaults
    here are larger, so that the perturbation counts.

    :param model: the model, or ``None`` to :meth:`attach` it later; its
        weights are written, and put back, for the prediction of the averaged ones only.
    :options:
    :raises ValueError: if an argument is out of range, ``emb_name`` matches no embedding, or ``bregman_weight`` is not
        0 on a model that is sharded.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> def step(batch):
        ...     pred = model(batch["ids"])
        ...     return {"loss": nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred}
        >>> smart = SMART(model, epsilon=0.1, alpha=0.1, noise=0.01)
        >>> outputs = smart(step, {"ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([0])})
        >>> outputs["loss"].backward()
        >>> bool(outputs["smart"] > 0)
        True
        >>> smart.close()
    """

    epsilon: float = option(
        default=1e-2,
        check=check_number,
        doc="how far each coordinate may move, in the units of the embedding",
        kw_only=False,
    )
    alpha: float = option(
        default=1e-2,
        check=check_number,
        doc="the length of an ascent step, in the same units, for the coordinate with the largest gradient. Longer "
        "than ``epsilon``, more coordinates end at the bound",
    )
    noise: float = option(
        default=1e-3,
        check=check_positive,
        doc="the standard deviation of the start. At a start of 0 the divergence would be flat",
    )
    steps: int = option(default=1, check=check_count, doc="the number of ascent steps")
    weight: float = option(
        default=1.0, check=check_number, doc="the weight :math:`w` of the divergence from the perturbed prediction"
    )
    bregman_weight: float = option(
        default=0.0,
        check=check_number,
        doc="the weight :math:`\\mu` of the divergence from the prediction of averaged weights; 0 for none",
    )
    bregman_beta: float = option(
        default=0.99, check=check_up_to_1, doc="the momentum :math:`\\beta` of the average, from 0 to 1"
    )

    paper = "https://arxiv.org/abs/1911.03437"

    name = "smart"

    fixed = PerturbedRegularizer.fixed | {"bregman_weight"}

    def _forget(self) -> None:
        super()._forget()
        self._averaged: dict[str, nn.Parameter] = {}
        self._average: dict[str, Tensor] = {}

    def find_taps(self, model: nn.Module) -> list[Tap]:
        if self.bregman_weight:
            refuse_sharded(model, "`bregman_weight`, which swaps the weights,")
        return super().find_taps(model)

    def make_memory(self, model: nn.Module) -> None:
        if self.bregman_weight:
            self._averaged = {name: p for name, p in model.named_parameters() if p.requires_grad}
            # in at least single precision: bfloat16 would round most updates away
            self._average = {name: self.stream.like(p).copy_(p.detach()) for name, p in self._averaged.items()}

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        if not self.bregman_weight:
            return super().regularize(objective, batch, forward)
        begin_pass = self.begin_dropout()
        begin_pass()
        old = self._prediction_of_average(objective if forward is None else forward, batch)
        begin_pass()  # the other passes begin where this one did
        outputs = super().regularize(objective, batch, forward)
        term = self.distance(outputs["pred"], old, find_mask(self.mask, batch, outputs))
        return add_term(outputs, "bregman", self.bregman_weight, term)

    @property
    def cost(self) -> Cost:
        return Cost(2 + self.steps + (self.bregman_weight > 0), 2, self.steps)

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        return torch.where(lookup.real(), self.noise * self.normal(output), 0)

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        peak = group_norm(delta.grad, dims=delta.dims, norm="linf")
        direction = torch.where(peak.isfinite() & (peak > 0), delta.grad / peak, 0)
        return project(delta.value + self.alpha * direction, self.epsilon, dims=delta.dims, norm="linf")

    @torch.no_grad()
    def after_step(self) -> None:
        for name, average in self._average.items():
            average.lerp_(self._averaged[name].to(average.dtype), 1 - self.bregman_beta)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.is_unattached:
            return state
        return {**state, "average": {name: a.clone() for name, a in self._average.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, value in state.get("average", {}).items():
            if name in self._average:
                self._average[name].copy_(value)

    @torch.no_grad()
    def _prediction_of_average(self, forward: Forward, batch: Any) -> Tensor:
        # Before any graph of this step exists, since autograd would refuse weights that are written after their use.
        backup = {name: p.clone() for name, p in self._averaged.items()}
        try:
            for name, p in self._averaged.items():
                p.copy_(self._average[name])
            torch.clear_autocast_cache()  # an autocast around the call keeps what it has cast
            outputs = read_outputs(forwards.run(forward, batch, bare=True, last=False), needs_loss=False)
            pred: Tensor = outputs["pred"]
            return pred
        finally:
            for name, p in self._averaged.items():
                p.copy_(backup[name])
            torch.clear_autocast_cache()
