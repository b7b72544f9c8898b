"""The gradient penalty as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..regularizers.gradient_penalty import GradientPenalty, GradientPenaltyArguments
from .base import RegularizerCallback

__all__ = ["GradientPenaltyCallback"]


@arguments
class GradientPenaltyCallback(RegularizerCallback, GradientPenaltyArguments):
    r"""
    Train with a penalty on the squared gradient at the embeddings, :class:`~fastnlp_adv.GradientPenalty`.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = GradientPenaltyCallback(weight=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = GradientPenalty
