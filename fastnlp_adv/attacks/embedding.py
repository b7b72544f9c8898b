"""Attacks on the lookups of embeddings by steps of steepest ascent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from ..embedding import fits
from ..functional import ascend, project, random_in_ball
from ..tap import Tap
from ..tapped import taps_on
from .base import Attack, Pass

__all__ = ["EmbeddingAttack"]


class EmbeddingAttack(Attack):
    """
    An attack on the lookups of embeddings by steps of steepest ascent.

    :param model: the model.
    :param arguments: those of :class:`~fastnlp_adv.FGM`.
    """

    def __init__(self, model: nn.Module, **arguments: Any):
        self.check(**arguments)
        vars(self).update(arguments)
        taps = taps_on(model, arguments["emb_name"], arguments.get("granularity", "sequence"))
        super().__init__(model, taps, arguments["dropout_mask"])

    epsilon: float
    emb_name: str | None
    granularity: str
    norm: str
    adv_weight: float
    replace: bool

    def first_pass(self) -> Pass:
        """The clean pass. With ``replace`` nothing trains on it, so it ends at the embeddings."""
        return Pass(trains=not self.replace)

    def adversarial_pass(self) -> Pass:
        """The pass that trains on the perturbed input, and the last one of the step."""
        return Pass(weight=self.adv_weight, adversarial=True, last=True)

    def ascend(self, step: float, *, radius: float | None = None, taps: list[Tap] | None = None) -> None:
        """Move every perturbation by ``step`` along its gradient, then back into the ball of ``radius``, if any."""
        moved = []
        taps = self.taps if taps is None else taps
        for tap, grads in [(tap, tap.gradients()) for tap in taps]:
            values = [self._moved(v, g, step, radius, dims) for (v, dims), g in zip(tap.values(), grads, strict=True)]
            tap.perturb(values)
            moved.append((grads, values))
        self.record(moved)

    def randomize(self, radius: float) -> None:
        """Start every perturbation at a random point of its ball."""
        for tap in self.taps:
            values = []
            for (value, dims), free in zip(tap.values(), tap.free(), strict=True):
                generator = self.noise.on(value.device)
                start = random_in_ball(value, radius, dims=dims, norm=self.norm, free=free, generator=generator)
                values.append(start)
            tap.perturb(values)

    def record_start(self) -> None:
        """Note the norms of a pass at where the perturbations started, for a step that has no climb."""
        self.record([(tap.gradients(), [value for value, _ in tap.values()]) for tap in self.taps])

    def inner_passes(self, closure: Callable[[], Tensor]) -> None:
        """Run, in a plain loop, all passes between the clean one and the adversarial one."""
        for each in self.passes():
            if each.last:
                return
            if not each.trains:
                self.gradient_of(closure)

    def gradient_of(self, closure: Callable[[], Tensor]) -> None:
        """Run the model and differentiate its loss with respect to the embeddings alone."""
        for tap in self.taps:
            tap.begin_pass(keep_leaves=True)
        with self.precision(Pass(trains=False)):
            loss = closure()
        self.differentiate(loss)

    def restore(self, emb_name: str | None = None) -> None:
        """
        Take the perturbation off.

        :param emb_name: only that of the embeddings of this name.
        """
        for tap in self._chosen(emb_name):
            tap.reset()

    def _until_restored(self, perturb: Callable[[], None]) -> AbstractContextManager:
        with ExitStack() as stack:
            stack.callback(self.restore)  # at once, if perturbing fails halfway
            perturb()
            return stack.pop_all()

    def _chosen(self, emb_name: str | None) -> list[Tap]:
        taps = [tap for tap in self.taps if emb_name is None or fits(tap.name, emb_name)]
        if not taps:
            raise ValueError(
                f"Expected `emb_name` to name an embedding that this attack watches, but got {emb_name!r}. It watches "
                f"{', '.join(f'`{tap.name}`' for tap in self.taps)}; give `emb_name` when the attack is built."
            )
        return taps

    def _moved(self, value: Tensor, grad: Tensor, step: float, radius: float | None, dims: tuple[int, ...]) -> Tensor:
        value = ascend(value, grad, step, dims=dims, norm=self.norm)
        return value if radius is None else project(value, radius, dims=dims, norm=self.norm)
