"""The fast gradient sign method."""

from __future__ import annotations

import torch
from torch import nn

from .fgm import FGM

__all__ = ["FGSM"]


class FGSM(FGM):
    r"""
    Fast gradient sign method (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples",
    https://arxiv.org/abs/1412.6572): :class:`FGM` with the largest step that moves no coordinate by more than
    ``epsilon``,

    .. math:: r = \epsilon\,\mathrm{sign}(\nabla_e L(e)).

    :param model: the model.
    :param epsilon: how far each coordinate moves, in the units of the embedding.
    :param emb_name: see :class:`FGM`.
    :param granularity: see :class:`FGM`; the sign of ``"sequence"`` and ``"token"`` is the same.
    :param norm: ``"linf"``; ``"l2"`` makes it :class:`FGM`.
    :param adv_weight: see :class:`FGM`.
    :param replace: see :class:`FGM`.
    :param dropout_mask: see :class:`FGM`.
    :param inner_autocast: see :class:`FGM`.
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> fgsm = FGSM(model, epsilon=0.003)
        >>> loss = fgsm.step(lambda: nn.functional.cross_entropy(model(torch.tensor([[1, 2, 3]])), torch.tensor([0])))
        >>> fgsm.close()
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 0.003,
        emb_name: str | None = None,
        granularity: str = "vocab",
        norm: str = "linf",
        adv_weight: float = 1.0,
        replace: bool = False,
        dropout_mask: str = "new",
        inner_autocast: torch.dtype | None = None,
    ):
        super().__init__(model, epsilon, emb_name, granularity, norm, adv_weight, replace, dropout_mask, inner_autocast)
