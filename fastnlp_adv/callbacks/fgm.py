"""FGM as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..arguments.shared import warmup
from ..attacks.fgm import FGM, FGMArguments
from .base import AttackCallback

__all__ = ["FGMCallback"]


@arguments
class FGMCallback(AttackCallback, FGMArguments):
    r"""
    Train with the fast gradient method, :class:`~fastnlp_adv.FGM`: each batch clean and at
    :math:`e + \epsilon g/\lVert g\rVert`.

    ``epsilon`` grows to its value over the whole training, without which a short training at a high learning rate
    learns nothing; ``warmup=0`` is the method of the paper from the first step.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGMCallback(epsilon=1.0, start=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FGM

    warmup: float = warmup(default=1.0)
