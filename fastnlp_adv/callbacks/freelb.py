"""FreeLB as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.freelb import FreeLB, FreeLBArguments
from .base import AttackCallback

__all__ = ["FreeLBCallback"]


@arguments
class FreeLBCallback(AttackCallback, FreeLBArguments):
    r"""
    Train with :class:`~fastnlp_adv.FreeLB`: on the mean loss along the way that a perturbation takes.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = FreeLBCallback(steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FreeLB
