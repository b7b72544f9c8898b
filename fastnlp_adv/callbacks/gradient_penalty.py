"""The gradient penalty as a callback."""

from __future__ import annotations

from ..regularizers.gradient_penalty import GradientPenalty
from .regularizer import RegularizerCallback

__all__ = ["GradientPenaltyCallback"]


class GradientPenaltyCallback(RegularizerCallback):
    r"""
    Trains with a penalty on the gradient at the embeddings, :class:`~fastnlp_adv.GradientPenalty`.

    :param weight: the weight of the penalty.
    :param emb_name: part of the name of an embedding, a glob, or ``None`` for the input embedding.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = GradientPenaltyCallback(weight=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = GradientPenalty

    def __init__(
        self,
        weight: float = 0.1,
        *,
        emb_name: str | None = None,
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(weight=weight, emb_name=emb_name, start=start, every=every, log_every=log_every)
