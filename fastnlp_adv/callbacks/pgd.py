"""PGD as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.pgd import PGD, PGDArguments
from .base import AttackCallback

__all__ = ["PGDCallback"]


@arguments
class PGDCallback(AttackCallback, PGDArguments):
    r"""
    Train with projected gradient descent, :class:`~fastnlp_adv.PGD`: each batch clean, and where ``steps`` ascent steps
    within a ball lead.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = PGDCallback(epsilon=1.0, steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = PGD
