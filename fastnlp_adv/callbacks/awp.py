"""Adversarial weight perturbation as a callback."""

from __future__ import annotations

import torch

from ..attacks.awp import AWP
from .base import AttackCallback

__all__ = ["AWPCallback"]


class AWPCallback(AttackCallback):
    r"""
    Trains with adversarial weight perturbation, :class:`~fastnlp_adv.AWP`: each batch at the weights, and at the
    weights moved along their gradient. They are put back before the optimizer steps.

    :param gamma: the size of the perturbation of a parameter, as a fraction of the parameter's norm.
    :param params: part of a parameter's name, or a glob; which parameters move.
    :param replace: train on the adversarial loss alone.
    :param adv_weight: the weight of the adversarial loss.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in both passes of a step.
    :param inner_autocast: ``torch.bfloat16`` for a lower precision in the pass that does not train (``replace``);
        see :class:`~fastnlp_adv.FGM`.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if no trainable parameter matches
        ``params``.

    Example::

        >>> callback = AWPCallback(gamma=0.001, params="*.weight")   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = AWP

    def __init__(
        self,
        gamma: float = 0.001,
        *,
        params: str = "*.weight",
        replace: bool = False,
        adv_weight: float = 1.0,
        dropout_mask: str = "new",
        inner_autocast: torch.dtype | None = None,
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(
            gamma=gamma,
            params=params,
            replace=replace,
            adv_weight=adv_weight,
            dropout_mask=dropout_mask,
            inner_autocast=inner_autocast,
            start=start,
            every=every,
            log_every=log_every,
        )
