"""Adversarial weight perturbation: train where the weights themselves are moved against the loss."""

from __future__ import annotations

from ..functional import group_norm, steepest_direction
from ..options import check_number, must_be, option, options
from ..taps import Delta, WeightTap
from .passes import AdversarialLoss
from .weights import WeightAttack

__all__ = ["AWP"]


@options
class AWP(AdversarialLoss, WeightAttack):
    r"""
    Adversarial weight perturbation (Wu et al. 2020, "Adversarial Weight Perturbation Helps Robust Generalization",
    https://arxiv.org/abs/2004.05884), with one step of ascent.

    The model trains on the sum of two losses, that of the weights and that of the weights moved along their gradient,
    each parameter in proportion to its own norm,

    .. math:: L(w) + a\, L(w + v), \qquad
        v = \gamma\, \lVert w \rVert_2\, g / \lVert g \rVert_2, \quad g = \nabla_w L(w),

    with :math:`g` of this micro-batch alone. The gradient of the second term is taken at :math:`w + v`, with :math:`v`
    held constant; the weights are written in place and put back bit for bit when the step ends, however it ends. A
    parameter with a zero, infinite or NaN gradient does not move, nor does one that took no part in the clean pass or
    that is zero. Two forward and two backward passes.

    A backup of each matched weight is held during the second pass, and a copy of its gradient during the first.

    :param model: the model, or ``None`` to :meth:`attach` it later.
    :options:
    :raises ValueError: if an argument is out of range, no trainable parameter matches ``params``, or the model is
        sharded.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> awp = AWP(model, gamma=0.01, params="2.weight")
        >>> loss = awp.step(lambda: nn.functional.cross_entropy(model(ids), labels))   # then optimizer.step()
        >>> torch.allclose(awp.perturbation_norm, 0.01 * model[2].weight.norm())
        True
        >>> awp.close()
    """

    gamma: float = option(
        default=0.001,
        check=check_number,
        doc="the size of the perturbation of a parameter, as a fraction of the parameter's norm. Over all of a deep "
        "model even a small one weighs: at 0.01 some models stayed where they began. The paper's 0.005 to 0.01 are for "
        "convolutional networks on images",
        kw_only=False,
    )
    params: str = option(
        default="*.weight",
        check=must_be("part of a parameter's name or a glob", lambda value: isinstance(value, str) and value != ""),
        doc="part of a parameter's name, or a glob. The default takes every weight and no bias, so also the embeddings "
        'and the layer norms; ``"*attention*.weight"`` or ``"encoder"`` takes less, and needs less memory. What is '
        "frozen stays where it is, until it is unfrozen",
    )

    paper = "https://arxiv.org/abs/2004.05884"

    fixed = WeightAttack.fixed | {"params"}

    def describe(self) -> str:
        if not self.taps:
            return f"AWP: gamma {self.gamma:g}, unattached"
        return f"{super().describe()}: gamma {self.gamma:g}, of each parameter's norm"

    def move(self, taps: list[WeightTap]) -> list[list[Delta]]:
        moved = []
        for tap in taps:
            (delta,) = tap.deltas()
            size = group_norm(tap.param.detach(), dims=delta.dims)
            by = self.gamma * self.strength * size * steepest_direction(delta.grad, dims=delta.dims)
            tap.move(by)
            delta.value = group_norm(by, dims=delta.dims)  # the norm alone, so that the rest can go
            moved.append([delta])
        return moved
