"""SMART: the prediction should be smooth around the input, and stay near that of the averaged weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_arguments, check_number
from ..functional import group_norm, project
from .base import Forward
from .mask import Mask, find_mask
from .outputs import read_outputs
from .perturbed import PerturbedRegularizer

__all__ = ["SMART"]


class SMART(PerturbedRegularizer):
    r"""
    Smoothness-inducing adversarial regularization with Bregman proximal point optimization (Jiang et al. 2020, "SMART:
    Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled Regularized
    Optimization", https://arxiv.org/abs/1911.03437):

    .. math:: L + w\,D\bigl(p(e), p(e + d)\bigr) + \mu\,D\bigl(p_\theta(e), p_{\tilde\theta}(e)\bigr), \qquad
        d \leftarrow \Pi_\epsilon\bigl(d + \alpha\, g / \lVert g \rVert_\infty\bigr), \quad
        g = \nabla_d D\bigl(p(e), p(e + d)\bigr),

    where :math:`D` is the sum of both KL divergences, :math:`d` begins at :math:`N(0, \mathrm{noise}^2)` and climbs
    ``steps`` times, :math:`\Pi_\epsilon` keeps each coordinate within ``epsilon``, and the norm is over each example.
    An example without a gradient, or with one that is not finite, keeps its perturbation. Gradients of the first
    divergence flow through both predictions. :math:`\tilde\theta \leftarrow \beta\tilde\theta + (1 - \beta)\theta`
    after each step of the optimizer (in a plain loop call :meth:`after_step`), held constant, of the parameters that
    require a gradient when this is built; nothing is kept of them if :math:`\mu` is 0.

    A step costs ``2 + steps`` forward passes, one backward pass through two of them, and ``steps`` backward passes that
    end at the embeddings: 2 + 2/3 plain steps by default. With ``bregman_weight`` one forward pass more.

    The paper has ``epsilon=1e-5, alpha=1e-3, noise=1e-5``, which is so little that with one dropout mask for all passes
    two predictions differ by about 1e-5 or less: float32 can resolve that to a few percent, float16 and bfloat16 not at
    all. With a new mask in each pass, the term is then the divergence between the masks, as in R-Drop. The defaults
    here are larger, so that the perturbation counts.

    :param model: the model; its weights are written, and put back, for the prediction of the averaged ones only.
    :param epsilon: how far each coordinate may move, in the units of the embedding.
    :param alpha: the length of a climb, in the same units, for the coordinate with the largest gradient. Longer than
        ``epsilon``, more coordinates end at the bound.
    :param noise: the standard deviation of the start. At a start of 0 the divergence would be flat.
    :param steps: the number of climbs.
    :param weight: the weight :math:`w`.
    :param bregman_weight: the weight :math:`\mu`; 0 for none.
    :param bregman_beta: the momentum :math:`\beta` of the average, from 0 to 1.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding; see
        :func:`~fastnlp_adv.embedding.find_embeddings`.
    :param divergence: see :class:`~fastnlp_adv.RDrop`; here the sum of both directions. For a regression ``"mse"``,
        which has one, the squared error.
    :param reduction: see :class:`~fastnlp_adv.RDrop`.
    :param mask: see :class:`~fastnlp_adv.RDrop`.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :raises ValueError: if an argument is out of range, or ``emb_name`` matches no embedding.

    Example::

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

    name = "smart"
    epsilon: float
    alpha: float
    bregman_weight: float
    bregman_beta: float

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 1e-2,
        alpha: float = 1e-2,
        noise: float = 1e-3,
        steps: int = 1,
        weight: float = 1.0,
        bregman_weight: float = 0.0,
        bregman_beta: float = 0.99,
        emb_name: str | None = None,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        reduction: str = "batchmean",
        mask: Mask = None,
        dropout_mask: str = "new",
    ):
        self.deviation = noise  # `self.noise` is the stream that it is drawn from
        super().__init__(
            model,
            epsilon=epsilon,
            alpha=alpha,
            noise=noise,
            steps=steps,
            weight=weight,
            bregman_weight=bregman_weight,
            bregman_beta=bregman_beta,
            emb_name=emb_name,
            divergence=divergence,
            reduction=reduction,
            mask=mask,
            dropout_mask=dropout_mask,
        )
        self._averaged = {n: p for n, p in model.named_parameters() if p.requires_grad} if bregman_weight else {}
        # in at least single precision: bfloat16 would round most updates away
        self._average = {n: self.noise.like(p).copy_(p.detach()) for n, p in self._averaged.items()}

    @classmethod
    def check(cls, **arguments: Any) -> None:
        positive = partial(check_number, positive=True)
        check_arguments(arguments, noise=positive, bregman_weight=check_number, bregman_beta=_check_fraction)

    @property
    def forwards(self) -> int:
        return super().forwards + (self.bregman_weight > 0)

    def __call__(self, objective: Forward, batch: Any, forward: Forward | None = None) -> dict[str, Any]:
        if not self.bregman_weight:
            return super().__call__(objective, batch, forward)
        with self.replay.step() as begin_pass:
            begin_pass()
            old = self._prediction_of_average(objective if forward is None else forward, batch)
            begin_pass()  # the other passes begin where this one did
        outputs = super().__call__(objective, batch, forward)
        term = self.distance(outputs["pred"], old, find_mask(self.mask, batch, outputs))
        return self.add(outputs, "bregman", self.bregman_weight, term)

    def start(self, index: int, ids: Tensor, output: Tensor, real: Tensor) -> Tensor:
        return torch.where(real, self.deviation * self.normal(output), 0)

    def climb(self, value: Tensor, grad: Tensor, dims: tuple[int, ...], *, last: bool) -> Tensor:
        peak = group_norm(grad, dims=dims, norm="linf")
        direction = torch.where(peak.isfinite() & (peak > 0), grad / peak, 0)
        return project(value + self.alpha * direction, self.epsilon, dims=dims, norm="linf")

    @torch.no_grad()
    def after_step(self) -> None:
        for name, average in self._average.items():
            average.lerp_(self._averaged[name].to(average.dtype), 1 - self.bregman_beta)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": {name: a.clone() for name, a in self._average.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, value in state["average"].items():
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
            return read_outputs(forward(batch), needs_loss=False)["pred"]
        finally:
            for name, p in self._averaged.items():
                p.copy_(backup[name])
            torch.clear_autocast_cache()


def _check_fraction(name: str, value: Any) -> None:
    check_number(name, value)
    if value > 1:
        raise ValueError(f"Expected `{name}` to be a number from 0 to 1, but got {value!r}.")
