"""Attacks on the weights themselves: train where they are moved against the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, distributed, nn

from ..options import Options, check_flag, check_fraction, check_number, must_be, one_of, option, optional, options
from ..taps import Tap, WeightTap, fits, refuse_sharded
from ..taps.weight import in_single_precision, moved_weights, rounded_at_random, widened
from .base import Attack, Pass
from .passes import AdversarialLoss, TwoPasses

#: keeps weights that are 0 able to move under ASAM, as in the paper's experiments
_ETA = 0.01


def _params(default: str, doc: str) -> Any:
    check = must_be("part of a parameter's name or a glob", lambda value: isinstance(value, str) and value != "")
    return option(
        default=default, check=check, doc=f"part of a parameter's name, or a glob: the parameters that move. {doc}"
    )


@options
class _OnParameters(Options):
    params: str = _params("*", "The default takes all; less needs less memory")
    fraction: float = option(
        default=1.0,
        check=check_fraction,
        doc="the fraction of a batch's examples to attack, drawn at random in each step, at least one. Where "
        "the first pass only gives the direction, it runs on those, and the second trains on the whole batch; else the "
        "first trains on the whole batch, and the second on those",
    )
    rounding: Literal["none", "stochastic"] = option(
        default="none",
        check=one_of("none", "stochastic"),
        doc='for weights in half precision, which is too coarse for the moves: ``"none"`` runs the pass at the moved '
        'weights in float32; ``"stochastic"`` runs it in half precision, cheaper on GPUs, at weights that are rounded '
        "up or down at random, right on average",
    )


class WeightAttack(_OnParameters, TwoPasses, Attack):
    """
    An attack that moves weights along their gradient in a pass, for the next one. They are written in place, and
    restored bit for bit when the step ends, also after an exception.
    """

    # Attributes of attacks without the argument.
    adv_weight: float = 1.0
    replace: bool = True
    adaptive: bool = False
    coordinate_bound: float | None = None

    fixed = Attack.fixed | {"params"}
    #: whether one gradient without a direction leaves all weights where they are
    one_norm: ClassVar[bool] = False

    def find_taps(self, model: nn.Module) -> list[Tap]:
        refuse_sharded(model, f"{type(self).__name__}, which moves the weights,")
        copies = distributed.is_available() and distributed.is_initialized()  # there `.grad` may become the mean
        return [WeightTap(name, param, copies=copies) for name, param in _matched(model, self.params).items()]

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace, part=self.replace)
        taps = [tap for tap in self.taps if isinstance(tap, WeightTap) and tap.has_grad and tap.param.numel()]
        with moved_weights([tap.param for tap in taps], [tap.backup for tap in taps]), ExitStack() as stack:
            if left := self.move(taps):
                stack.enter_context(in_single_precision(self.attached, left))
            yield Pass(weight=self.adv_weight, adversarial=True, last=True, part=not self.replace)

    def describe(self) -> str:
        name, shared = self.names()[0], self.whose() if self.taps else "unattached"
        some = "" if self.fraction == 1 or not self.taps else f", with {self.fraction:.3g} of the examples"
        return f"{super().describe() or type(self).__name__}: {name} {getattr(self, name):g}, {shared}{some}"

    @torch.no_grad()
    def move(self, taps: list[WeightTap]) -> dict[Tensor, Tensor]:
        """Move weights along their gradients, and note norms. Return the values that are too fine for their weights."""
        # In the memory of the weights themselves, and in few sweeps over it: these take most of the time.
        values = [widened(tap.param.detach()) for tap in taps]
        scaled = [self.in_own_units(value, tap) for value, tap in zip(values, taps, strict=True)]
        lows, highs = zip(*map(torch.aminmax, scaled), strict=True)
        peaks = torch.maximum(torch.stack(highs), -torch.stack(lows))
        for value, grad in zip(values, scaled, strict=True):
            torch.nan_to_num(grad, 0.0, 0.0, 0.0, out=value)
        # the largest coordinate is made 1 first: the squares of small gradients would vanish
        torch._foreach_div_(values, list(torch.where(peaks.isfinite() & (peaks > 0), peaks, 1).unbind()))
        sizes = torch.where(peaks.isfinite(), torch.stack(torch._foreach_norm(values)), torch.nan)
        peak = peaks.amax()
        shares = peaks / torch.where(peak == 0, 1, peak) * sizes
        size = torch.linalg.vector_norm(shares)
        factors = self.strength * self.lengths(shares / size, taps) / sizes
        without = ~factors.isfinite()  # a gradient that is zero or not finite has no direction
        factors = torch.where(without, 0, factors)
        if self.coordinate_bound is None and not self.adaptive:  # each weight moves along its own gradient
            for tap, value, factor in zip(taps, values, factors.unbind(), strict=True):
                torch.addcmul(tap.backup, value, factor, out=value)
            lengths = list(torch.where(without, 0, factors * sizes).unbind())
        else:
            torch._foreach_mul_(values, list(factors.unbind()))
            self.in_units_of_weights(values, taps)
            lengths = list(torch._foreach_norm(values))
            torch._foreach_add_(values, [tap.backup for tap in taps])
        left: dict[Tensor, Tensor] = {}
        for number, (tap, value) in enumerate(zip(taps, values, strict=True)):
            if value.dtype != tap.param.dtype and self.rounding == "none":
                left[tap.param] = value
            elif value.dtype != tap.param.dtype:
                tap.param.copy_(rounded_at_random(value, tap.param.dtype, self.stream))
                lengths[number] = torch.linalg.vector_norm(value.copy_(tap.param).sub_(tap.backup))
        skipped = without.all().long() if self.one_norm else without.sum()
        self.norms = {
            "grad": peak * size,
            "perturbation": torch.linalg.vector_norm(torch.stack(lengths)),
            "skipped": skipped + self.norms.get("skipped", 0),
        }
        return left

    def in_own_units(self, memory: Tensor, tap: WeightTap) -> Tensor:
        """Return the gradient, in the units of its norm and the precision of ``memory``, where it may be written."""
        assert tap.grad is not None
        return tap.grad if tap.grad.dtype == memory.dtype else memory.copy_(tap.grad)

    def in_units_of_weights(self, moves: list[Tensor], taps: list[WeightTap]) -> None:
        """Give perturbations the units of the weights, in place."""

    @abstractmethod
    def whose(self) -> str:
        """Name the norm that the size is a fraction of, for the log."""

    @abstractmethod
    def lengths(self, shares: Tensor, taps: list[WeightTap]) -> Tensor:
        """Return how far to move each weight, given the shares of the gradients in the norm of all."""

    def check_grad(self) -> bool:
        if any(tap.has_grad for tap in self.taps):
            return True
        if not any(tap.had_grad for tap in self.taps):
            raise RuntimeError(
                f"Expected the first pass to compute a gradient for a parameter that matches `params={self.params!r}`, "
                "but got none. Check that the loss depends on it and that it requires gradients, or give other "
                "`params`."
            )
        return False


@options
class AWP(AdversarialLoss, WeightAttack):
    r"""
    Adversarial weight perturbation (Wu et al. 2020, "Adversarial Weight Perturbation Helps Robust Generalization",
    https://arxiv.org/abs/2004.05884), with one step of ascent.

    The model trains on the clean loss plus the loss at the weights moved along their gradient, each parameter in
    proportion to its own norm,

    .. math:: L(w) + a\, L(w + v), \qquad
        v = \gamma\, \lVert w \rVert_2\, g / \lVert g \rVert_2, \quad g = \nabla_w L(w),

    with :math:`g` of this micro-batch only. The gradient of the second term is taken at :math:`w + v`, with :math:`v`
    held constant; the weights are written in place and restored bit for bit when the step ends, also after an
    exception. A parameter with a zero, infinite or NaN gradient does not move, nor does one that took no part in the
    clean pass or that is zero. Two forward and two backward passes: 2 plain steps, or 1 + f with a ``fraction`` f of
    the batch.

    A backup of each matched weight is held from the first step on, until :meth:`close`.

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
        doc="the size of the perturbation of a parameter, as a fraction of the parameter's norm. In a deep "
        "model even a small value matters: at 0.01 some models did not converge. The paper's 0.005 to 0.01 are for "
        "convolutional networks on images",
        kw_only=False,
    )
    params: str = _params(
        "weight",
        "The default takes every weight and no bias: matrices, embeddings, ``weight_ih_l0`` and ``in_proj_weight``, "
        "and of one-dimensional parameters the weights of layer norms and the lengths that weight normalization "
        'learns. ``"*attention*weight"`` or ``"encoder"`` takes less, and needs less memory. Frozen parameters '
        "do not move until they are unfrozen",
    )
    coordinate_bound: float | None = option(
        default=None,
        check=optional(check_number),
        doc="how far each coordinate of a weight may move, as a fraction of its own absolute value; ``None`` for any "
        "distance, as in the paper. Code from competitions has this bound as ``adv_eps``",
    )

    paper = "https://arxiv.org/abs/2004.05884"

    def whose(self) -> str:
        return "of each parameter's norm"

    def lengths(self, shares: Tensor, taps: list[WeightTap]) -> Tensor:
        wide = [(tap.backup, torch.promote_types(tap.backup.dtype, torch.float32)) for tap in taps]
        return self.gamma * torch.stack([torch.linalg.vector_norm(weight, dtype=dtype) for weight, dtype in wide])

    def in_units_of_weights(self, moves: list[Tensor], taps: list[WeightTap]) -> None:
        assert self.coordinate_bound is not None
        for move, tap in zip(moves, taps, strict=True):
            most = tap.backup.to(move.dtype).abs().mul_(self.strength * self.coordinate_bound)
            torch.clamp(move, -most, most, out=move)


@options
class SAM(WeightAttack):
    r"""
    Sharpness-aware minimization (Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
    Generalization", https://arxiv.org/abs/2010.01412).

    The model trains on the gradient at the weights moved along the gradient of the same batch, with one norm over all
    trainable parameters that match ``params``,

    .. math:: \nabla_w L(w + v), \qquad v = \rho\, g / \lVert g \rVert_2, \quad g = \nabla_w L(w),

    with :math:`v` held constant. With ``adaptive`` (Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for
    Scale-Invariant Learning of Deep Neural Networks", https://arxiv.org/abs/2102.11600)

    .. math:: v = \rho\, T_w^2 g / \lVert T_w g \rVert_2,

    where :math:`T_w` multiplies each coordinate of a weight by :math:`|w_i| + 0.01`, and leaves other parameters, such
    as biases, unchanged. As in the authors' code, a weight is a parameter with ``weight`` in its
    name.

    :math:`g` is of this micro-batch only. The weights are written in place and restored bit for bit when the step ends,
    also after an exception. If one gradient is infinite or NaN, or all are zero, nothing moves: the step is a plain
    one. Two forward and two backward passes, of which the first adds nothing to ``.grad``. With a ``fraction`` f of the
    batch a step costs 1 + f plain ones (Bahri et al. 2022, https://arxiv.org/abs/2110.08529). A backup of the weights
    is held from the first step on, until :meth:`close`.

    :param model: the model, or ``None`` to :meth:`attach` it later.
    :options:
    :raises ValueError: if an argument is out of range, no trainable parameter matches ``params``, or the model is
        sharded.

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
        doc="the radius of the ball: how far the matched parameters together are moved, in their units. With "
        "``adaptive`` in units of the parameters, so about ten times as much; the paper has 0.5",
        kw_only=False,
    )
    adaptive: bool = option(
        default=False,
        check=check_flag,
        doc="measure each parameter in units of itself (ASAM), so that scaling a layer does not change the ball",
    )

    one_norm = True

    paper = "https://arxiv.org/abs/2010.01412"

    def whose(self) -> str:
        return "shared by all" + ", in units of each parameter" * self.adaptive

    def lengths(self, shares: Tensor, taps: list[WeightTap]) -> Tensor:
        return self.rho * shares

    def in_own_units(self, memory: Tensor, tap: WeightTap) -> Tensor:
        grad = super().in_own_units(memory, tap)
        if not self.adaptive or "weight" not in tap.name:
            return grad
        return torch.mul(grad, self._units(memory, tap), out=memory)

    def in_units_of_weights(self, moves: list[Tensor], taps: list[WeightTap]) -> None:
        for move, tap in zip(moves, taps, strict=True):
            if "weight" in tap.name:
                move.mul_(self._units(move, tap))

    @staticmethod
    def _units(memory: Tensor, tap: WeightTap) -> Tensor:
        return tap.backup.to(memory.dtype).abs().add_(_ETA)


def _matched(model: nn.Module, params: str) -> dict[str, nn.Parameter]:
    named = list(model.named_parameters(remove_duplicate=False))  # a tied weight fits by either of its names
    names = {param: name for name, param in reversed(named) if fits(name, params)}
    trainable = [f"`{name}`" for name, param in named if param.requires_grad]
    if not trainable:
        raise ValueError(
            f"Expected the model to have a trainable parameter, but got {len(named)} that require no gradient. Call "
            "`requires_grad_()` on those that are to be trained."
        )
    if not any(param.requires_grad for param in names):
        more = f" and {len(trainable) - 20} more" if len(trainable) > 20 else ""
        raise ValueError(
            f"Expected `params` to match the name of a trainable parameter, but got {params!r}. The model trains "
            f"{', '.join(trainable[:20])}{more}. Give part of one of these names, or a glob."
        )
    return {name: param for param, name in names.items()}
