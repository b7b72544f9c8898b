"""FGSM as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.fgsm import FGSM, FGSMArguments
from .base import AttackCallback

__all__ = ["FGSMCallback"]


@arguments
class FGSMCallback(AttackCallback, FGSMArguments):
    r"""
    Train with the fast gradient sign method, :class:`~fastnlp_adv.FGSM`: each batch clean and at
    :math:`e + \epsilon\,\mathrm{sign}(g)`.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGSMCallback(epsilon=0.003)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FGSM
