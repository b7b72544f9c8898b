"""The search for the worst perturbation of each example."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..forwards import announced
from ..functional import ascend, project, random_in_ball
from ..method import OnEmbeddings
from ..model_method import ModelMethod
from ..options import (
    at_least,
    check_count,
    check_flag,
    check_number,
    check_positive,
    must_be,
    option,
    optional,
    options,
)
from ..taps import Delta, EmbeddingTap, Tap, taps_on


@dataclass
class Scores:
    """The loss and the wrong labels of each example of a batch."""

    losses: Tensor  # of shape (examples,), in double precision
    errors: Tensor  # the number of labels that are predicted wrong; 0 if unknown
    labels: Tensor  # the number of labels; 0 if unknown
    heights: Tensor  # a rising function of the loss, on which the attack ascends


@options
class EvaluationAttack(OnEmbeddings, ModelMethod):
    """Attacks a model that is evaluated; its hooks are on the model inside :meth:`running` only."""

    def attach(self, model: nn.Module) -> Self:
        super().attach(model)
        self.close()
        return self

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run one forward, with gradients on: without them the taps do not see its lookups."""
        for tap in self.taps:
            tap.begin_pass(inner=True)
        # cuDNN has no backward pass for recurrent layers in eval mode
        is_recurrent = any(isinstance(module, nn.RNNBase) for module in self.attached.modules())
        kernels = torch.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()
        with torch.enable_grad(), kernels, announced(bare=True):
            return forward()

    def backward(self, found: Scores) -> None:
        """Compute the gradients of the heights at the lookups of the last forward."""
        with torch.enable_grad():
            total = found.heights.sum()
        self.differentiate(total)


@dataclass
class _Worst:
    """The worst points of a batch so far, and the highest losses, which may be at other points."""

    losses: Tensor
    errors: Tensor
    labels: Tensor
    highest: Tensor
    values: list[Tensor]  # a perturbation for each lookup

    def totals(self) -> Tensor:
        """Return the sums of highest losses, examples, errors and labels."""
        examples = self.highest.new_tensor(len(self.highest))
        return torch.stack([self.highest.sum(), examples, self.errors.sum(), self.labels.sum()])

    def consider(self, found: Scores, values: list[Tensor]) -> None:
        """Take worse points: more errors, then a higher loss."""
        losses = found.losses.detach()
        worse = (found.errors > self.errors) | ((found.errors == self.errors) & (losses > self.losses))
        self.losses = torch.where(worse, losses, self.losses)
        self.errors = torch.where(worse, found.errors, self.errors)
        self.highest = torch.maximum(losses, self.highest)
        self.values = [
            torch.where(worse.view(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(values, self.values, strict=True)
        ]


def _check_epsilons(name: str, value: Any) -> None:
    must_be("a list or tuple of numbers", lambda v: isinstance(v, (list, tuple)) and bool(v))(name, value)
    for each in value:
        check_number(name, each)


@options
class WorstCase(EvaluationAttack):
    r"""
    Searches for the worst perturbation of each example, by projected gradient ascent from random starts (Madry et al.
    2018, https://arxiv.org/abs/1706.06083) on the outputs of the lookups, in an l2 ball per example:

    .. math:: r_{t+1} = \Pi_\epsilon\bigl(r_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr).

    Padding (``padding_idx``) is not perturbed; where a forward looks up several times, each lookup has a ball of its
    own. Costs ``restarts * (steps + 1)`` forward passes for each epsilon, and a backward pass to the embeddings for
    nearly all of them. Its hooks are on the model inside :meth:`running` only.

    :param model: the model; its weights and gradients are never written.
    :options:
    :raises ValueError: if an argument is out of range, or no embedding matches ``emb_name``.
    """

    epsilons: Sequence[float] = option(
        default=(0.1, 0.2, 0.4), check=_check_epsilons, doc="the radii of the balls", kw_only=False
    )
    relative: bool = option(default=True, check=check_flag, doc="in rows, the mean norm of the embedding's rows")
    steps: int = option(default=20, check=check_count, doc="the number of ascent steps from each start")
    restarts: int = option(default=3, check=check_count, doc="the number of random starts")
    alpha: float | None = option(
        default=None,
        check=optional(check_positive),
        doc="the length of an ascent step, in the units of ``epsilons``; ``2.5 * epsilon / steps`` if ``None``",
    )
    seed: int = option(default=0, check=at_least(0), doc="of the starts, the same for all epsilons and all calls")

    def find_taps(self, model: nn.Module) -> list[Tap]:
        return taps_on(model, self.emb_name, "sequence")

    def make_memory(self, model: nn.Module) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin an evaluation: the starts come from the seed, the unit from the weights at this moment."""
        taps = self.embedding_taps
        self.stream.generator = torch.Generator(taps[0].embedding.weight.device).manual_seed(self.seed)
        self._units: list[float] = []
        for tap in taps:
            unit = tap.embedding.row_length() if self.relative else 1.0
            if unit is None:
                raise ValueError(
                    f"Expected `relative=True` to find embedding `{tap.name}` whole in each process, but got a shard. "
                    "Give `epsilons` in the units of the embedding, with `relative=False`."
                )
            self._units.append(unit)

    def search(self, forward: Callable[[], Scores]) -> Iterator[tuple[float, _Worst]]:
        """
        Attack a batch, inside :meth:`running`.

        :param forward: runs the model on the batch and scores its outputs.
        :return: the worst points at 0, then at each epsilon in turn; a larger one keeps the points of smaller ones.
        """
        for tap in self.taps:
            tap.reset()
        clean = self.run(forward)
        self.backward(clean)  # shows which lookups the loss depends on
        places = self._deltas()
        self._owners = [tap for tap, _, _ in places]
        deltas = [delta for _, _, delta in places]
        for delta in deltas:
            if len(delta.value) != len(clean.losses):
                raise ValueError(
                    "Expected a lookup to have one row for each example, since the worst point is chosen for each, but "
                    f"got a lookup of {len(delta.value)} rows for {len(clean.losses)} losses. Give the model ids of "
                    "shape (examples, ...), or name with `emb_name` an embedding with such ids."
                )
        losses = clean.losses.detach()
        worst = _Worst(losses, clean.errors, clean.labels, losses, [delta.value for delta in deltas])
        starts = [[self._start(unit, delta) for _, unit, delta in places] for _ in range(self.restarts)]
        yield 0.0, worst
        for epsilon in sorted({float(epsilon) for epsilon in self.epsilons if epsilon > 0}):
            for start in starts:
                self._ascend(epsilon, [epsilon * value for value in start], forward, worst)
            yield epsilon, worst

    def at(self, worst: _Worst, forward: Callable[[], Any]) -> Any:
        """Run the model at the worst points that :meth:`search` yielded; without a graph."""
        self._perturb(worst.values)
        return on_tensors(self.run(forward), "detach")

    def _deltas(self) -> list[tuple[EmbeddingTap, float, Delta]]:
        """Return each perturbed lookup with its tap and the unit of lengths there."""
        taps = zip(self.embedding_taps, self._units, strict=True)
        return [(tap, unit, delta) for tap, unit in taps for delta in tap.deltas()]

    def _start(self, unit: float, delta: Delta) -> Tensor:
        """Return a point of the ball of radius 1, which each epsilon multiplies."""
        generator = self.stream.on(delta.value.device)
        return unit * random_in_ball(delta.value, 1.0, dims=delta.dims, free=delta.free, generator=generator)

    def _ascend(self, epsilon: float, values: list[Tensor], forward: Callable[[], Scores], worst: _Worst) -> None:
        alpha = 2.5 * epsilon / self.steps if self.alpha is None else self.alpha
        for left in reversed(range(self.steps + 1)):
            self._perturb(values)
            found = self.run(forward)
            worst.consider(found, values)
            if left:
                self.backward(found)
                values = [
                    project(ascend(d.value, d.grad, alpha * unit, dims=d.dims), epsilon * unit, dims=d.dims)
                    for _, unit, d in self._deltas()
                ]

    def _perturb(self, values: list[Tensor]) -> None:
        for tap in self.taps:
            tap.perturb([value for value, owner in zip(values, self._owners, strict=True) if owner is tap])


def on_tensors(value: Any, method: str, *args: Any) -> Any:
    """Call a method of all tensors in a value; it is copied, and keeps its type."""
    if hasattr(value, method):
        return getattr(value, method)(*args)
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = on_tensors(item, method, *args)
        return changed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **on_tensors(fields, method, *args))
    return type(value)(on_tensors(item, method, *args) for item in value) if type(value) in (list, tuple) else value
