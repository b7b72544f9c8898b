"""The fast gradient method and its sign: one ascent step along the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..functional import NORMS
from ..options import check_number, one_of, option, options
from .base import Pass
from .embedding import Norm, TwoPassAttack


@options
class FGM(TwoPassAttack):
    r"""
    Fast gradient method for text (Miyato et al. 2017, "Adversarial Training Methods for Semi-Supervised Text
    Classification", https://arxiv.org/abs/1605.07725).

    The model trains on the clean loss plus the loss of the input moved along its gradient,

    .. math:: L(e) + w L(e + r), \qquad r = \epsilon\, g / \lVert g \rVert_2, \quad g = \nabla_e L(e),

    where :math:`e` are the outputs of the embedding lookups and :math:`w` is ``adv_weight``. A step costs
    as much as 2 plain ones, or 5/3 with ``replace``; with a ``fraction`` f, 1 + f or 1 + 2f/3.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written, unless ``emb_name``
        matches parameters that are not looked up.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> from torch import nn
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

    epsilon: float = option(
        default=1.0,
        check=check_number,
        doc="the norm of the perturbation, in the units of the embedding",
        kw_only=False,
    )

    paper = "https://arxiv.org/abs/1605.07725"

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace, part=self.replace)
        self.ascend(self.epsilon)
        yield Pass(weight=self.adv_weight, adversarial=True, last=True, part=not self.replace)

    def attack(
        self,
        epsilon: float | None = None,
        emb_name: str | None = None,
        *,
        closure: Callable[[], Tensor] | None = None,
        loss: Tensor | None = None,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> AbstractContextManager[Any]:
        """
        Perturb the embeddings until :meth:`restore`, or until the end of the ``with`` block.

        :param epsilon: replaces the constructor's in this step.
        :param emb_name: only the embeddings of this name, among those that the attack watches.
        :param closure: returns the loss; its gradient is computed here, at the embeddings only. Without it, the
            gradient of the last backward pass is used.
        :param loss: the clean loss, which ``warmup="auto"`` follows.
        :param accumulation_steps: how many batches make an optimizer step, for ``warmup``.
        :param total_steps: the optimizer steps of the training, for ``warmup`` as a fraction of it.
        :return: a context manager that restores.
        :raises ValueError: if ``epsilon`` is out of range, or ``emb_name`` names no embedding of this attack.
        :raises RuntimeError: if the embedding has no gradient.
        """
        taps = self._chosen(emb_name)
        step = self.epsilon if epsilon is None else epsilon
        check_number("epsilon", step)

        def perturb() -> None:
            if closure is not None:
                self.gradient_of(closure)
            self.ascend(step, taps=taps)

        return self._until_restored(perturb, loss=loss, accumulation_steps=accumulation_steps, total_steps=total_steps)


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
