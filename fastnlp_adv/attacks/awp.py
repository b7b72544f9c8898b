"""Adversarial weight perturbation: train where the weights themselves are moved against the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import nn

from ..arguments import argument, arguments, shared
from ..functional import group_norm, steepest_direction
from ..taps import WeightTap, fits, refuse_sharded
from .base import Attack, Pass

__all__ = ["AWP", "AWPArguments"]


def _check_params(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"Expected `{name}` to be part of a parameter's name or a glob, but got {value!r}.")


@arguments
class AWPArguments(shared.TwoPassArguments):
    gamma: float = argument(
        0.001,
        "the size of the perturbation of a parameter, as a fraction of the parameter's norm. Over all of a deep model "
        "even a small one weighs: at 0.01 some models stayed where they began. The paper's 0.005 to 0.01 are for "
        "convolutional networks on images",
    )
    params: str = argument(
        "*.weight",
        "part of a parameter's name, or a glob. The default takes every weight and no bias, so also the embeddings and "
        'the layer norms; ``"*attention*.weight"`` or ``"encoder"`` takes less, and needs less memory. What is frozen '
        "stays where it is, until it is unfrozen",
        _check_params,
    )
    replace: bool = shared.replace(", but for those of the matched weights, and leaves those in ``.grad`` alone")
    adv_weight: float = shared.adv_weight()
    dropout_mask: shared.DropoutMask = shared.dropout_mask()
    inner_autocast: Optional[torch.dtype] = shared.inner_autocast()


@arguments
class AWP(AWPArguments, Attack):
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

    :param model: the model.
    :arguments:
    :raises ValueError: if an argument is out of range, no trainable parameter matches ``params``, or the model is
        sharded.

    Example::

        >>> import torch
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> awp = AWP(model, gamma=0.01, params="2.weight")
        >>> loss = awp.step(lambda: nn.functional.cross_entropy(model(ids), labels))   # then optimizer.step()
        >>> torch.allclose(awp.perturbation_norm, 0.01 * model[2].weight.norm())
        True
        >>> awp.close()
    """

    paper = "https://arxiv.org/abs/2004.05884"

    fixed = Attack.fixed | {"params"}

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_sharded(self.model, "AWP, which moves the weights,")
        self._weights = [WeightTap(name, param) for name, param in _matched(self.model, self.params).items()]
        self.set_up(self.model, [*self._weights], self.dropout_mask)

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace)
        self._move()
        yield Pass(weight=self.adv_weight, adversarial=True, last=True)

    def describe(self) -> str:
        return f"{super().describe()}: gamma {self.gamma:g}, of each parameter's norm"

    def check_reached(self) -> bool:
        if any(tap.reached for tap in self.taps):
            return True
        if not any(tap.seen for tap in self.taps):
            raise RuntimeError(
                f"Expected the clean pass to bring a gradient to a parameter that matches `params={self.params!r}`, "
                "but got none. Give `params` that the loss depends on, and see that they require gradients."
            )
        return False

    def _move(self) -> None:
        moved = []
        for tap in self._weights:
            if tap.reached:
                (delta,) = tap.deltas()
                size = group_norm(tap.param.detach(), dims=delta.dims)
                by = self.gamma * size * steepest_direction(delta.grad, dims=delta.dims)
                tap.move(by)
                delta.value = group_norm(by, dims=delta.dims)  # the norm alone, so that the rest can go
                moved.append([delta])
        self.record(moved)


def _matched(model: nn.Module, params: str) -> dict[str, nn.Parameter]:
    named = list(model.named_parameters(remove_duplicate=False))  # a tied weight fits by either of its names
    names = {param: name for name, param in reversed(named) if fits(name, params)}
    if not any(param.requires_grad for param in names):
        trainable = [f"`{name}`" for name, param in named if param.requires_grad]
        more = f" and {len(trainable) - 20} more" if len(trainable) > 20 else ""
        raise ValueError(
            f"Expected `params` to match the name of a trainable parameter, but got {params!r}. The model trains "
            f"{', '.join(trainable[:20]) or 'nothing'}{more}. Give part of one of these names, or a glob."
        )
    return {name: param for param, name in names.items()}
