"""Projected gradient descent: several ascent steps, each projected back to a ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor

from ..method import Cost
from ..options import check_count, check_flag, check_number, option, optional, options
from .base import Pass
from .embedding import TwoPassAttack


@options
class PGD(TwoPassAttack):
    r"""
    Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083).

    ``steps`` times the perturbation moves by ``alpha`` along the gradient and is projected back to the ball of radius
    ``epsilon``,

    .. math:: r_{t+1} = \Pi_\epsilon\bigl(r_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr),
        \quad g_t = \nabla_e L(e + r_t),

    and the model trains on :math:`L(e) + w L(e + r_K)`. The first ascent step uses the gradient of the clean pass, the
    others an inner pass, which computes no other gradient and costs two thirds of a full one: 2 + 2(K-1)/3 plain
    steps, 1 + 2K/3 with ``replace``; with a ``fraction`` f, 1 + f + 2(K-1)f/3 and 1 + 2Kf/3.

    :param model: the model, or ``None`` to :meth:`attach` it later.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> def closure():
        ...     return nn.functional.cross_entropy(model(ids), labels)
        >>> pgd = PGD(model, epsilon=0.5, steps=3)
        >>> closure().backward()
        >>> with pgd.attack(closure):
        ...     closure().backward()
        >>> round(pgd.perturbation_norm.item(), 4)
        0.5
        >>> pgd.close()
    """

    epsilon: float = option(
        default=1.0, check=check_number, doc="the radius of the ball, in the units of the embedding", kw_only=False
    )
    alpha: float | None = option(
        default=None,
        check=optional(check_number),
        doc="the length of an ascent step, in the same units; ``1.5 * epsilon / steps`` if ``None``, so that the steps "
        "reach the ball's surface even where they do not all point the same way",
    )
    steps: int = option(default=3, check=check_count, doc="the number :math:`K` of ascent steps")
    random_init: bool = option(
        default=False,
        check=check_flag,
        doc="start at a random point of the ball, as the paper does; the gradient there takes one more inner pass",
    )

    paper = "https://arxiv.org/abs/1706.06083"

    @property
    def cost(self) -> Cost:
        inner = self.steps - 1 + self.random_init
        return Cost(2 + inner, 2 - self.replace, inner + self.replace)

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace, part=self.replace)
        if self.random_init:
            self.randomize(self.epsilon)
            yield Pass(trains=False, adversarial=True, part=True)
        for left in reversed(range(self.steps)):
            step = 1.5 * self.epsilon / self.steps if self.alpha is None else self.alpha
            self.ascend(step, radius=self.epsilon)
            if left:
                yield Pass(trains=False, adversarial=True, part=True)
        yield Pass(weight=self.adv_weight, adversarial=True, last=True, part=not self.replace)

    def attack(
        self,
        closure: Callable[[], Tensor],
        *,
        loss: Tensor | None = None,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> AbstractContextManager[Any]:
        """
        Run the inner passes, and perturb the embeddings until :meth:`restore` or the end of the ``with`` block. The
        clean backward pass comes before it (not with ``replace``).

        :param closure: runs the model on the batch and returns its loss; called once per inner pass.
        :param loss: the clean loss, which ``warmup="auto"`` follows.
        :param accumulation_steps: how many batches make an optimizer step, for ``warmup``.
        :param total_steps: the optimizer steps of the training, for ``warmup`` as a fraction of it.
        :return: a context manager that restores.
        :raises RuntimeError: if the embedding has no gradient.
        """
        perturb = partial(self.inner_passes, closure)
        return self._until_restored(perturb, loss=loss, accumulation_steps=accumulation_steps, total_steps=total_steps)
