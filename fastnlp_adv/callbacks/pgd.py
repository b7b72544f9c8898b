"""PGD as a callback."""

from __future__ import annotations

import torch

from ..attacks import PGD
from .base import AttackCallback

__all__ = ["PGDCallback"]


class PGDCallback(AttackCallback):
    r"""
    Trains with projected gradient descent, :class:`~fastnlp_adv.PGD`: each batch clean and at the end of ``steps``
    climbs in a ball around it.

    :param epsilon: the radius of the ball, in the units of the embedding.
    :param alpha: the length of a climb.
    :param steps: the number of climbs.
    :param random_init: start at a random point of the ball; costs one more inner pass.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``; see :class:`~fastnlp_adv.FGM`.
    :param norm: ``"l2"`` or ``"linf"``.
    :param adv_weight: the weight of the adversarial loss.
    :param replace: train on the adversarial loss alone.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param inner_autocast: ``torch.bfloat16`` for a lower precision in the passes that do not train;
        see :class:`~fastnlp_adv.PGD`.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = PGDCallback(epsilon=1.0, alpha=0.3, steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = PGD

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        alpha: float = 0.3,
        steps: int = 3,
        random_init: bool = False,
        emb_name: str | None = None,
        granularity: str = "vocab",
        norm: str = "l2",
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
            alpha=alpha,
            steps=steps,
            random_init=random_init,
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
