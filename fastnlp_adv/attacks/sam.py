"""Sharpness-aware minimization: train on the gradient at the worst of the neighbouring weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import group_norm
from ..options import check_flag, check_number, option, options
from ..taps import Delta, WeightTap
from .weights import WeightAttack

__all__ = ["SAM"]

#: keeps weights that are 0 able to move, as in the paper's experiments
_ETA = 0.01


@options
class SAM(WeightAttack):
    r"""
    Sharpness-aware minimization (Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", https://arxiv.org/abs/2010.01412).

    The model trains on the gradient at the weights moved along the gradient of the same batch, with one norm over all
    trainable parameters,

    .. math:: \nabla_w L(w + v), \qquad v = \rho\, g / \lVert g \rVert_2, \quad g = \nabla_w L(w),

    with :math:`v` held constant. With ``adaptive`` (Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks", https://arxiv.org/abs/2102.11600)

    .. math:: v = \rho\, T_w^2 g / \lVert T_w g \rVert_2,

    where :math:`T_w` multiplies each coordinate of a weight by :math:`|w_i| + 0.01`, and leaves those of other
    parameters, such as biases, as they are. As in the authors' code, a weight is a parameter with ``weight`` in its
    name.

    :math:`g` is of this micro-batch alone. The weights are written in place and put back bit for bit when the step
    ends, however it ends. If one gradient is infinite or NaN, or all are zero, nothing moves: the step is a plain one.
    Two forward and two backward passes, of which the first adds nothing to ``.grad``. A backup of the weights is held
    during the second pass.

    :param model: the model, or ``None`` to :meth:`attach` it later.
    :options:
    :raises ValueError: if an argument is out of range, or the model has no trainable parameter.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> sam = SAM(model, rho=0.05)
        >>> loss = sam.step(lambda: nn.functional.cross_entropy(model(ids), labels))   # then optimizer.step()
        >>> round(sam.perturbation_norm.item(), 4)
        0.05
        >>> sam.close()
    """

    rho: float = option(
        default=0.05,
        check=check_number,
        doc="the radius of the ball: how far all trainable parameters together are moved, in their units. With "
        "``adaptive`` in units of the parameters, so about ten times as much; the paper has 0.5",
        kw_only=False,
    )
    adaptive: bool = option(
        default=False,
        check=check_flag,
        doc="measure each parameter in units of itself (ASAM), so that scaling a layer does not change the ball",
    )

    paper = "https://arxiv.org/abs/2010.01412"

    def describe(self) -> str:
        if not self.taps:
            return f"SAM: rho {self.rho:g}, unattached"
        units = ", in units of each parameter" if self.adaptive else ""
        return f"{super().describe()}: rho {self.rho:g}, shared by all{units}"

    def move(self, taps: list[WeightTap]) -> list[list[Delta]]:
        deltas = [delta for tap in taps for delta in tap.deltas()]
        # the largest coordinate is made 1 first: the squares of small gradients would vanish
        peaks = [
            group_norm(self._scaled(tap, d.grad), dims=d.dims, norm="linf") for tap, d in zip(taps, deltas, strict=True)
        ]
        peak = torch.stack([each.flatten() for each in peaks]).amax()
        sizes = [group_norm(self._scaled(tap, d.grad / peak), dims=d.dims) for tap, d in zip(taps, deltas, strict=True)]
        size = torch.linalg.vector_norm(torch.stack([each.flatten() for each in sizes]))
        moves = size.isfinite() & (size > 0)
        for tap, delta, each in zip(taps, deltas, sizes, strict=True):
            direction = self._scaled(tap, self._scaled(tap, delta.grad / peak)) / size
            by = torch.where(moves, self.rho * self.strength * direction, 0)
            tap.move(by)
            # the norms alone, so that the rest can go
            delta.value, delta.grad = group_norm(by, dims=delta.dims), each * peak
        return [deltas]

    def _scaled(self, tap: WeightTap, x: Tensor) -> Tensor:
        """Return ``x`` times :math:`T_w`."""
        return x * (tap.param.detach().abs() + _ETA) if self.adaptive and "weight" in tap.name else x
