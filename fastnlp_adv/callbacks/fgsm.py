"""FGSM as a callback."""

from __future__ import annotations

import torch

from ..attacks import FGSM
from .base import AttackCallback

__all__ = ["FGSMCallback"]


class FGSMCallback(AttackCallback):
    r"""
    Trains with the fast gradient sign method, :class:`~fastnlp_adv.FGSM`: each batch clean and at
    :math:`e + \epsilon\,\mathrm{sign}(g)`.

    :param epsilon: how far each coordinate moves, in the units of the embedding.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``; see :class:`~fastnlp_adv.FGM`.
    :param norm: ``"linf"`` or ``"l2"``.
    :param adv_weight: the weight of the adversarial loss.
    :param replace: train on the adversarial loss alone.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param inner_autocast: ``torch.bfloat16`` for a lower precision in the pass that does not train (``replace``);
        see :class:`~fastnlp_adv.FGM`.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGSMCallback(epsilon=0.003)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FGSM

    def __init__(
        self,
        epsilon: float = 0.003,
        *,
        emb_name: str | None = None,
        granularity: str = "vocab",
        norm: str = "linf",
        adv_weight: float = 1.0,
        replace: bool = False,
        dropout_mask: str = "new",
        inner_autocast: torch.dtype | None = None,
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(
            epsilon=epsilon,
            emb_name=emb_name,
            granularity=granularity,
            norm=norm,
            adv_weight=adv_weight,
            replace=replace,
            dropout_mask=dropout_mask,
            inner_autocast=inner_autocast,
            start=start,
            every=every,
            log_every=log_every,
        )
