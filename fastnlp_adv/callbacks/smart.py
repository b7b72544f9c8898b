"""SMART as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..regularizers.smart import SMART, SMARTArguments
from .base import RegularizerCallback

__all__ = ["SMARTCallback"]


@arguments
class SMARTCallback(RegularizerCallback, SMARTArguments):
    r"""
    Train with smoothness-inducing regularization and, if asked, Bregman proximal points, :class:`~fastnlp_adv.SMART`.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = SMARTCallback(weight=1.0, bregman_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = SMART
