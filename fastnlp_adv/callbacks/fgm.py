"""FGM as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.fgm import FGM, FGMArguments
from .base import AttackCallback

__all__ = ["FGMCallback"]


@arguments
class FGMCallback(AttackCallback, FGMArguments):
    r"""
    Train with the fast gradient method, :class:`~fastnlp_adv.FGM`: each batch clean and at
    :math:`e + \epsilon g/\lVert g\rVert`.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGMCallback(epsilon=1.0, start=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FGM
