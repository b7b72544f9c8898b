"""FGM as a callback."""

from __future__ import annotations

import torch

from ..attacks import FGM
from .base import AttackCallback

__all__ = ["FGMCallback"]


class FGMCallback(AttackCallback):
    r"""
    Trains with the fast gradient method, :class:`~fastnlp_adv.FGM`: each batch clean and at
    :math:`e + \epsilon g/\lVert g\rVert`.

    :param epsilon: the norm of the perturbation, in the units of the embedding.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``; see :class:`~fastnlp_adv.FGM`.
    :param norm: ``"l2"`` or ``"linf"``.
    :param adv_weight: the weight of the adversarial loss.
    :param replace: train on the adversarial loss alone.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param inner_autocast: ``torch.bfloat16`` for a lower precision in the pass that does not train (``replace``);
        see :class:`~fastnlp_adv.FGM`.
    :param start: optimizer steps of plain training before the attack sets in, or, below 1, a fraction of the training.
    :param every: attack in one of this many optimizer steps.
    :param log_every: write ``trainer.state["adv"]`` to fastNLP's log every so many batches; 0 for never.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FGMCallback(epsilon=1.0, start=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FGM

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
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
