"""The fast gradient sign method."""

from __future__ import annotations

from ..arguments import argument, arguments, shared
from .fgm import FGM, FGMArguments

__all__ = ["FGSM", "FGSMArguments"]


@arguments
class FGSMArguments(FGMArguments):
    epsilon: float = argument(0.003, "how far each coordinate moves, in the units of the embedding")
    norm: shared.Norm = shared.norm(default="linf")


@arguments
class FGSM(FGSMArguments, FGM):
    r"""
    Fast gradient sign method (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples",
    https://arxiv.org/abs/1412.6572): :class:`FGM` with the largest step that moves no coordinate by more than
    ``epsilon``,

    .. math:: r = \epsilon\,\mathrm{sign}(\nabla_e L(e)).

    The sign of ``"sequence"`` and ``"token"`` is the same, and ``norm="l2"`` makes it :class:`FGM`.

    :param model: the model.
    :arguments:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> fgsm = FGSM(model, epsilon=0.003)
        >>> loss = fgsm.step(lambda: nn.functional.cross_entropy(model(torch.tensor([[1, 2, 3]])), torch.tensor([0])))
        >>> fgsm.close()
    """

    paper = "https://arxiv.org/abs/1412.6572"
