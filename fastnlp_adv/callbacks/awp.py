"""Adversarial weight perturbation as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.awp import AWP, AWPArguments
from .base import AttackCallback

__all__ = ["AWPCallback"]


@arguments
class AWPCallback(AttackCallback, AWPArguments):
    r"""
    Train with adversarial weight perturbation, :class:`~fastnlp_adv.AWP`: each batch at the weights, and at the weights
    moved along their gradient. They are put back before the optimizer steps.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if no trainable parameter
        matches ``params``.

    Example::

        >>> callback = AWPCallback(gamma=0.001, params="*.weight")   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = AWP
