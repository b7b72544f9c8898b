"""TAVAT as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.tavat import TAVAT, TAVATArguments
from .base import AttackCallback

__all__ = ["TAVATCallback"]


@arguments
class TAVATCallback(AttackCallback, TAVATArguments):
    r"""
    Train with token-aware virtual adversarial training, :class:`~fastnlp_adv.TAVAT`: as FreeLB, with perturbations of
    tokens that are kept from step to step, and are part of a checkpoint.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = TAVATCallback(steps=2)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = TAVAT
