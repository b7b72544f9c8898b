"""SMART as a callback."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..regularizers.smart import SMART
from .regularizer import RegularizerCallback

__all__ = ["SMARTCallback"]


class SMARTCallback(RegularizerCallback):
    r"""
    Trains with smoothness-inducing regularization and, if asked, Bregman proximal points, :class:`~fastnlp_adv.SMART`.

    :param epsilon: how far each coordinate may move, in the units of the embedding.
    :param alpha: the length of a climb.
    :param noise: the standard deviation of the start.
    :param steps: the number of climbs.
    :param weight: the weight of the divergence from the perturbed prediction.
    :param bregman_weight: the weight of the divergence from the prediction of averaged weights; 0 for none.
    :param bregman_beta: the momentum of that average.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding.
    :param divergence: ``"categorical"``, ``"bernoulli"``, ``"mse"``, or a function of two predictions.
    :param reduction: ``"batchmean"``, ``"sum"`` or ``"mean"``.
    :param mask: a batch key or a function that tells which positions count.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = SMARTCallback(weight=1.0, bregman_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = SMART

    def __init__(
        self,
        epsilon: float = 1e-2,
        *,
        alpha: float = 1e-2,
        noise: float = 1e-3,
        steps: int = 1,
        weight: float = 1.0,
        bregman_weight: float = 0.0,
        bregman_beta: float = 0.99,
        emb_name: str | None = None,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        reduction: str = "batchmean",
        mask: str | Callable | None = None,
        dropout_mask: str = "new",
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(
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
            start=start,
            every=every,
            log_every=log_every,
        )
