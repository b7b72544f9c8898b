"""Sharpness-aware minimization as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.sam import SAM, SAMArguments
from .base import AttackCallback

__all__ = ["SAMCallback"]


@arguments
class SAMCallback(AttackCallback, SAMArguments):
    r"""
    Train with sharpness-aware minimization, :class:`~fastnlp_adv.SAM`: each batch at the weights moved along their
    gradient, by ``rho`` in all. They are put back before the optimizer steps.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if the model has no trainable
        parameter.

    Example::

        >>> callback = SAMCallback(rho=0.05)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = SAM
