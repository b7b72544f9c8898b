"""The fast gradient sign method."""

from __future__ import annotations

from ..functional import NORMS
from ..options import check_number, one_of, option, options
from .embedding import Norm
from .fgm import FGM

__all__ = ["FGSM"]


@options
class FGSM(FGM):
    r"""
    Fast gradient sign method (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples",
    https://arxiv.org/abs/1412.6572): :class:`FGM` with the largest step that moves no coordinate by more than
    ``epsilon``,

    .. math:: r = \epsilon\,\mathrm{sign}(\nabla_e L(e)).

    The sign of ``"sequence"`` and ``"token"`` is the same, and ``norm="l2"`` makes it :class:`FGM`.

    :param model: the model, or ``None`` to :meth:`attach` it later.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> fgsm = FGSM(model, epsilon=0.003)
        >>> loss = fgsm.step(lambda: nn.functional.cross_entropy(model(torch.tensor([[1, 2, 3]])), torch.tensor([0])))
        >>> fgsm.close()
    """

    epsilon: float = option(
        default=0.003,
        check=check_number,
        doc="how far each coordinate moves, in the units of the embedding",
        kw_only=False,
    )
    norm: Norm = option(default="linf", check=one_of(*NORMS), doc='``"linf"``, or ``"l2"`` as :class:`FGM` has')

    paper = "https://arxiv.org/abs/1412.6572"
