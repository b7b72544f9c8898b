"""Projected gradient descent: several small steps, kept in a ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_inner_passes
from .base import Pass
from .embedding import EmbeddingAttack

__all__ = ["PGD"]


class PGD(EmbeddingAttack):
    r"""
    Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083).

    ``steps`` times the perturbation climbs by ``alpha`` and is projected back to the ball of radius ``epsilon``,

    .. math:: r_{t+1} = \Pi_\epsilon\bigl(r_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr),
        \quad g_t = \nabla_e L(e + r_t),

    and the model trains on :math:`L(e) + w L(e + r_K)`. The first climb uses the gradient of the clean pass, the others
    a pass that computes the gradient at the embeddings alone, at two thirds of a full one: 2 + 2(K-1)/3 plain steps.

    :param model: the model.
    :param epsilon: the radius of the ball, in the units of the embedding.
    :param alpha: the length of a step, in the same units.
    :param steps: the number :math:`K` of steps.
    :param random_init: start at a random point of the ball, as the paper does. The first climb then needs a pass of its
        own, at the gradient of that point: one more inner pass.
    :param emb_name: see :class:`~fastnlp_adv.FGM`.
    :param granularity: see :class:`~fastnlp_adv.FGM`; also what the projection is over.
    :param norm: ``"l2"``, or ``"linf"`` for steps along the sign and a cube instead of a ball.
    :param adv_weight: see :class:`~fastnlp_adv.FGM`.
    :param replace: see :class:`~fastnlp_adv.FGM`; a step then costs 1 + 2K/3 plain ones.
    :param dropout_mask: see :class:`~fastnlp_adv.FGM`.
    :param inner_autocast: ``torch.bfloat16`` runs the model in this precision, under autocast, in the passes that do
        not train, of which only the direction :math:`g_t / \lVert g_t \rVert_2` is used; the gradient arrives, and the
        perturbation is kept, in the precision of the lookups. The passes that train run as they would. An autocast that
        the model or the Trainer (``fp16=True``) enters itself goes first. ``None``, the default, changes nothing.
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> def closure():
        ...     return nn.functional.cross_entropy(model(ids), labels)
        >>> pgd = PGD(model, epsilon=0.5, alpha=0.3, steps=3)
        >>> closure().backward()
        >>> with pgd.attack(closure):
        ...     closure().backward()
        >>> round(pgd.perturbation_norm.item(), 4)
        0.5
        >>> pgd.close()
    """

    alpha: float
    steps: int
    random_init: bool

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 1.0,
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
    ):
        super().__init__(
            model,
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
        )

    @classmethod
    def check(cls, **arguments: Any) -> None:
        super().check(**arguments)
        inner = arguments.get("steps") != 1 or arguments.get("random_init") or arguments.get("replace")
        check_inner_passes(arguments, there_are=bool(inner))

    def passes(self) -> Iterator[Pass]:
        yield self.first_pass()
        if self.random_init:
            self.randomize(self.epsilon)
            yield Pass(trains=False, adversarial=True)
        self.ascend(self.alpha, radius=self.epsilon)
        for _ in range(self.steps - 1):
            yield Pass(trains=False, adversarial=True)
            self.ascend(self.alpha, radius=self.epsilon)
        yield self.adversarial_pass()

    def attack(self, closure: Callable[[], Tensor]) -> AbstractContextManager:
        """
        Run the inner steps, and perturb the embeddings until :meth:`restore` or the end of the ``with`` block. The
        clean backward pass comes before it (not with ``replace``).

        :param closure: runs the model on the batch and returns its loss; called once an inner pass.
        :return: a context manager that restores.
        :raises RuntimeError: if no gradient has come to the embedding.
        """
        return self._until_restored(lambda: self.inner_passes(closure))
