"""Projected gradient descent: several ascent steps, each projected back to a ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Optional

import torch
from torch import Tensor

from ..arguments import Cost, argument, arguments, check_number, shared
from ..taps import Granularity
from .base import Pass
from .embedding import EmbeddingAttack

__all__ = ["PGD", "PGDArguments"]


@arguments
class PGDArguments(shared.TwoPassArguments):
    epsilon: float = argument(1.0, "the radius of the ball, in the units of the embedding")
    alpha: Optional[float] = argument(
        None,
        "the length of an ascent step, in the same units; ``1.5 * epsilon / steps`` if ``None``, so that the steps "
        "reach the ball's surface even where they do not all point the same way",
        check_number,
    )
    steps: int = argument(3, "the number :math:`K` of ascent steps")
    random_init: bool = argument(
        False,
        "start at a random point of the ball, as the paper does; the first ascent step then needs a pass of its own, "
        "at the gradient of that point: one more inner pass",
    )
    emb_name: Optional[str] = shared.emb_name()
    granularity: Granularity = shared.granularity()
    norm: shared.Norm = shared.norm()
    adv_weight: float = shared.adv_weight()
    replace: bool = shared.replace(", so a step costs 1 + 2K/3 plain ones")
    dropout_mask: shared.DropoutMask = shared.dropout_mask()
    inner_autocast: Optional[torch.dtype] = shared.inner_autocast()
    fraction: float = shared.fraction(
        ": 1 + f + 2(K-1)f/3 plain steps for a fraction f, 1 + 2Kf/3 with ``replace``, which trains the others as they "
        "are"
    )

    @property
    def cost(self) -> Cost:
        """The passes of a step."""
        inner = self.steps - 1 + self.random_init
        return Cost(2 + inner, 2 - self.replace, inner + self.replace)


@arguments
class PGD(PGDArguments, EmbeddingAttack):
    r"""
    Projected gradient descent (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    https://arxiv.org/abs/1706.06083).

    ``steps`` times the perturbation moves by ``alpha`` along the gradient and is projected back to the ball of radius
    ``epsilon``,

    .. math:: r_{t+1} = \Pi_\epsilon\bigl(r_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr),
        \quad g_t = \nabla_e L(e + r_t),

    and the model trains on :math:`L(e) + w L(e + r_K)`. The first ascent step uses the gradient of the clean pass, the
    others a pass that computes the gradient at the embeddings alone, at two thirds of a full one: 2 + 2(K-1)/3 plain
    steps.

    :param model: the model.
    :arguments:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

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

    paper = "https://arxiv.org/abs/1706.06083"

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace, part=self.replace)
        if self.random_init:
            self.randomize(self.epsilon)
            yield Pass(trains=False, adversarial=True, part=True)
        for left in reversed(range(self.steps)):
            self.ascend(self.step_length, radius=self.epsilon)
            if left:
                yield Pass(trains=False, adversarial=True, part=True)
        yield Pass(weight=self.adv_weight, adversarial=True, last=True, part=not self.replace)

    @property
    def step_length(self) -> float:
        """The length of an ascent step: ``alpha``, or what stands for ``None``."""
        return 1.5 * self.epsilon / self.steps if self.alpha is None else self.alpha

    def attack(self, closure: Callable[[], Tensor]) -> AbstractContextManager[Any]:
        """
        Run the inner steps, and perturb the embeddings until :meth:`restore` or the end of the ``with`` block. The
        clean backward pass comes before it (not with ``replace``).

        :param closure: runs the model on the batch and returns its loss; called once per inner pass.
        :return: a context manager that restores.
        :raises RuntimeError: if no gradient has come to the embedding.
        """
        return self._until_restored(lambda: self.inner_passes(closure))
