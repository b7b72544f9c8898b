"""R3F as a callback."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..regularizers.r3f import R3F
from .regularizer import RegularizerCallback

__all__ = ["R3FCallback"]


class R3FCallback(RegularizerCallback):
    r"""
    Trains with :class:`~fastnlp_adv.R3F`: the prediction should not change under noise.

    :param epsilon: the size of the noise, in the units of the embedding.
    :param weight: the weight of the divergence.
    :param noise: ``"normal"`` or ``"uniform"``.
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

        >>> callback = R3FCallback(epsilon=0.1, noise="uniform")   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = R3F

    def __init__(
        self,
        epsilon: float = 0.1,
        *,
        weight: float = 1.0,
        noise: str = "normal",
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
            weight=weight,
            noise=noise,
            emb_name=emb_name,
            divergence=divergence,
            reduction=reduction,
            mask=mask,
            dropout_mask=dropout_mask,
            start=start,
            every=every,
            log_every=log_every,
        )
