"""Attacks on the lookups of embeddings by steps of steepest ascent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_flag, check_number
from ..embedding import find_embeddings, fits
from ..functional import NORMS, ascend, project, random_in_ball
from ..perturbation import GRANULARITIES
from ..tap import EmbeddingTap, Tap
from ..weight_tap import WeightTap
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
        self.generator: torch.Generator | None = None
        super().__init__(model, _taps(model, arguments["emb_name"], arguments["granularity"]))

    epsilon: float
    emb_name: str | None
    granularity: str
    norm: str
    adv_weight: float
    replace: bool

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """
        Check the arguments alone, without a model.

        :raises ValueError: if one is out of range.
        """
        for name in {"epsilon", "alpha", "adv_weight"} & set(arguments):
            check_number(name, arguments[name])
        check_choice("granularity", arguments["granularity"], GRANULARITIES)
        check_choice("norm", arguments["norm"], tuple(NORMS))
        check_flag("replace", arguments["replace"])
        if not isinstance(arguments["emb_name"], (str, type(None))) or arguments["emb_name"] == "":
            raise ValueError(f"Expected `emb_name` to be a part of a name or None, but got {arguments['emb_name']!r}.")

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
            values = [
                self._moved(v, g, step, radius, dims) for (v, dims, _), g in zip(tap.values(), grads, strict=True)
            ]
            tap.perturb(values)
            moved.append((grads, values))
        self._record(moved)

    def randomize(self, radius: float) -> None:
        """Start every perturbation at a random point of its ball."""
        for tap in self.taps:
            values = []
            for value, dims, free in tap.values():
                start = random_in_ball(value, radius, dims=dims, norm=self.norm, free=free, generator=self.generator)
                values.append(start)
            tap.perturb(values)

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
        self.differentiate(closure())

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

    def _record(self, moved: list[tuple[list[Tensor], list[Tensor]]]) -> None:
        self.grad_norm = _total_norm([g for grads, _ in moved for g in grads])
        self.perturbation_norm = _total_norm([v for _, values in moved for v in values])
        for grads, _ in moved:
            finite = torch.stack([g.isfinite().all() for g in grads]).all()
            flat = torch.stack([(g == 0).all() for g in grads]).all()
            skipped = (flat | ~finite).long()
            self.skipped = skipped if self.skipped is None else self.skipped + skipped


def _taps(model: nn.Module, emb_name: str | None, granularity: str) -> list[Tap]:
    matches = find_embeddings(model, emb_name)
    if matches.weights and granularity != "vocab":
        raise ValueError(
            f"Expected `granularity` to be 'vocab' for parameters that are not looked up, but got {granularity!r} with "
            f"{', '.join(f'`{name}`' for name in matches.weights)}. Choose 'vocab', or an `emb_name` that matches "
            "embeddings only."
        )
    taps: list[Tap] = [EmbeddingTap(embedding, granularity) for embedding in matches.embeddings]
    return taps + [WeightTap(name, param) for name, param in matches.weights.items()]


def _total_norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t.float()) for t in tensors]))
