"""The fast gradient method: one step along the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_inner_passes, check_number
from .base import Pass
from .embedding import EmbeddingAttack

__all__ = ["FGM"]


class FGM(EmbeddingAttack):
    r"""
    Fast gradient method for text (Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text
    Classification", https://arxiv.org/abs/1605.07725).

    The model trains on the sum of two losses, that of the clean input and that of the input moved along its gradient,

    .. math:: L(e) + w L(e + r), \qquad r = \epsilon\, g / \lVert g \rVert_2, \quad g = \nabla_e L(e),

    where :math:`e` are the outputs of the embedding lookups. Two forward and two backward passes.

    :param model: the model; its weights are never written, unless ``emb_name`` matches parameters that are not looked
        up.
    :param epsilon: the norm of the perturbation, in the units of the embedding.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding;
        see :func:`~fastnlp_adv.embedding.find_embeddings`.
    :param granularity: ``"vocab"``, one perturbation a token type, normalized over the micro-batch (the same as
        perturbing the weights); ``"sequence"``, one a position, normalized over each example (the first dimension of
        the ids); ``"token"``, one a position, normalized by itself.
    :param norm: ``"l2"``, or ``"linf"`` for :math:`r = \epsilon\,\mathrm{sign}(g)`.
    :param adv_weight: the weight :math:`w` of the adversarial loss. In a plain loop with :meth:`attack` you apply it
        yourself.
    :param replace: train on the adversarial loss alone. The first pass then computes no parameter gradients, so a step
        costs 5/3 plain ones instead of 2.
    :param dropout_mask: ``"new"``: each pass draws its own dropout mask, as in fastNLP's tutorial; ``"same"``: all
        passes of a step share one.
    :param inner_autocast: ``torch.bfloat16`` runs the model in this precision, under autocast, in the pass that does
        not train, of which only the direction of a gradient is used. With ``replace`` only, and ``None`` for the
        precision of the other pass. An autocast that the model or the Trainer (``fp16=True``) enters itself goes first.
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> fgm = FGM(model, epsilon=1.0)
        >>> nn.functional.cross_entropy(model(ids), labels).backward()
        >>> with fgm.attack():
        ...     nn.functional.cross_entropy(model(ids), labels).backward()
        >>> round(fgm.perturbation_norm.item(), 4)
        1.0
        >>> fgm.close()
    """

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 1.0,
        emb_name: str | None = None,
        granularity: str = "vocab",
        norm: str = "l2",
        adv_weight: float = 1.0,
        replace: bool = False,
        dropout_mask: str = "new",
        inner_autocast: torch.dtype | None = None,
    ):
        super().__init__(
            model,
            epsilon=epsilon,
            emb_name=emb_name,
            granularity=granularity,
            norm=norm,
            adv_weight=adv_weight,
            replace=replace,
            dropout_mask=dropout_mask,
            inner_autocast=inner_autocast,
        )

    @classmethod
    def check(cls, **arguments: Any) -> None:
        super().check(**arguments)
        check_inner_passes(arguments, there_are=bool(arguments.get("replace")))

    def passes(self) -> Iterator[Pass]:
        yield self.first_pass()
        self.ascend(self.epsilon)
        yield self.adversarial_pass()

    def attack(
        self, epsilon: float | None = None, emb_name: str | None = None, *, closure: Callable[[], Tensor] | None = None
    ) -> AbstractContextManager:
        """
        Perturb the embeddings until :meth:`restore`, or until the end of the ``with`` block.

        :param epsilon: instead of the constructor's, for this time.
        :param emb_name: only the embeddings of this name, among those of the constructor.
        :param closure: returns the loss; given it, the gradient is computed here, at the embeddings alone. Without it,
            the gradient is the one of the last backward pass.
        :return: a context manager that restores.
        :raises ValueError: if ``epsilon`` is out of range, or ``emb_name`` names no embedding of this attack.
        :raises RuntimeError: if no gradient has come to the embedding.
        """
        taps = self._chosen(emb_name)
        step = self.epsilon if epsilon is None else epsilon
        check_number("epsilon", step)

        def perturb() -> None:
            if closure is not None:
                self.gradient_of(closure)
            self.ascend(step, taps=taps)

        return self._until_restored(perturb)
