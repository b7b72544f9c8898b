"""The search for the worst perturbation of each example."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..forwards import announced
from ..functional import ascend, project, random_in_ball
from ..method import OnEmbeddings
from ..model_method import ModelMethod
from ..options import at_least, check_count, check_flag, check_number, check_positive, option, optional, options
from ..taps import Delta, EmbeddingTap, Tap, taps_on
from .scores import Scores

__all__ = ["WorstCase", "differentiable"]


@dataclass
class _Worst:
    """The worst points of a batch so far, and the highest losses, which another point may have."""

    losses: Tensor
    errors: Tensor
    labels: Tensor
    highest: Tensor
    values: list[list[Tensor]]

    def totals(self) -> Tensor:
        """Return what averages are made of: the sums of highest losses, examples, errors and labels."""
        sums = [self.highest.sum(), self.highest.new_tensor(len(self.highest)), self.errors.sum()]
        return torch.stack([*sums, self.labels.sum()])

    def consider(self, found: Scores, values: list[list[Tensor]]) -> None:
        """Take worse points: more errors, then a higher loss. An example once predicted wrong stays wrong."""
        losses = found.losses.detach()
        worse = (found.errors > self.errors) | ((found.errors == self.errors) & (losses > self.losses))
        self.losses = torch.where(worse, losses, self.losses)
        self.errors = torch.where(worse, found.errors, self.errors)
        self.highest = torch.where(losses > self.highest, losses, self.highest)
        self.values = [
            [torch.where(worse.view(-1, *[1] * (v.dim() - 1)), v, old) for v, old in zip(new, known, strict=True)]
            for new, known in zip(values, self.values, strict=True)
        ]


def _check_epsilons(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"Expected `{name}` to be a list or tuple of numbers, but got {value!r}.")
    for each in value:
        check_number(name, each)


@options
class WorstCase(OnEmbeddings, ModelMethod):
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
    relative: bool = option(
        default=True,
        check=check_flag,
        doc="in units of the mean norm of the rows of the embedding; else in the units of the embedding",
    )
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

    def attach(self, model: nn.Module) -> Self:
        super().attach(model)
        self.close()
        return self

    def make_memory(self, model: nn.Module) -> None:
        self._radii = sorted({float(epsilon) for epsilon in self.epsilons if epsilon > 0})
        self.begin()

    def begin(self) -> None:
        """Begin an evaluation: from the seed, so that all evaluations have the same starts, and on today's weights."""
        taps = self.embedding_taps
        self.stream.generator = torch.Generator(taps[0].embedding.weight.device).manual_seed(self.seed)
        self._units = [_row(tap) if self.relative else 1.0 for tap in taps]

    def search(self, forward: Callable[[], Scores]) -> Iterator[tuple[float, _Worst]]:
        """
        Attack a batch, inside :meth:`running`.

        :param forward: runs the model on the batch and scores what it returns.
        :return: the worst points at 0, then at each epsilon in turn; a larger one keeps what smaller ones found.
        """
        for tap in self.taps:
            tap.reset()
        clean = self.run(forward)
        self._backward(clean)  # tells which lookups the loss depends on
        places = [tap.deltas() for tap in self.taps]
        _check_rows(places, clean.losses)
        losses = clean.losses.detach()
        at_zero = [[delta.value for delta in each] for each in places]
        worst = _Worst(losses, clean.errors, clean.labels, losses, at_zero)
        starts = [[[self._start(delta) for delta in each] for each in places] for _ in range(self.restarts)]
        yield 0.0, worst
        for epsilon in self._radii:
            for start in starts:
                self._ascend(epsilon, start, forward, worst)
            yield epsilon, worst

    def at(self, worst: _Worst, forward: Callable[[], Any]) -> Any:
        """Run the model at the worst points that :meth:`search` yielded; without a graph."""
        self._perturb(worst.values)
        return _detached(self.run(forward))

    def run(self, forward: Callable[[], Any]) -> Any:
        """Run one forward, with gradients on: without them a lookup does not know its place."""
        for tap in self.taps:
            tap.begin_pass(inner=True)
        with torch.enable_grad(), differentiable(self.attached), announced(bare=True):
            return forward()

    def _start(self, delta: Delta) -> Tensor:
        """Draw a point of the ball of radius 1, which every epsilon starts at its multiple of."""
        generator = self.stream.on(delta.value.device)
        return random_in_ball(delta.value, 1.0, dims=delta.dims, free=delta.free, generator=generator)

    def _ascend(self, epsilon: float, start: list[list[Tensor]], forward: Callable[[], Scores], worst: _Worst) -> None:
        alpha = 2.5 * epsilon / self.steps if self.alpha is None else self.alpha
        values = [[epsilon * unit * v for v in each] for unit, each in zip(self._units, start, strict=True)]
        for left in reversed(range(self.steps + 1)):
            self._perturb(values)
            found = self.run(forward)
            worst.consider(found, values)
            if left:
                self._backward(found)
                values = [
                    [self._moved(delta, alpha * unit, epsilon * unit) for delta in tap.deltas()]
                    for tap, unit in zip(self.taps, self._units, strict=True)
                ]

    @staticmethod
    def _moved(delta: Delta, step: float, radius: float) -> Tensor:
        return project(ascend(delta.value, delta.grad, step, dims=delta.dims), radius, dims=delta.dims)

    def _backward(self, found: Scores) -> None:
        with torch.enable_grad():
            total = found.heights.sum()
        self.differentiate(total)

    def _perturb(self, values: list[list[Tensor]]) -> None:
        for tap, each in zip(self.taps, values, strict=True):
            tap.perturb(each)


def _row(tap: EmbeddingTap) -> float:
    length = tap.embedding.row_length()
    if length is None:
        raise ValueError(
            f"Expected `relative=True` to find embedding `{tap.name}` whole in each process, but got a shard of it. "
            "Give `epsilons` in the units of the embedding, with `relative=False`."
        )
    return length


def _check_rows(places: list[list[Delta]], losses: Tensor) -> None:
    for each in places:
        for delta in each:
            if len(delta.value) != len(losses):
                raise ValueError(
                    "Expected a lookup to have one row for each example, since the worst point is chosen for each, but "
                    f"got a lookup of {len(delta.value)} rows for {len(losses)} losses. Give the model ids of shape "
                    "(examples, ...), or name with `emb_name` an embedding that is looked up so."
                )


def _detached(value: Any) -> Any:
    """Return a copy of the same type, so that users find the entries of a ``ModelOutput`` where they look for them."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = _detached(item)
        return changed
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: _detached(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return type(value)(map(_detached, value)) if type(value) in (list, tuple) else value


def differentiable(model: nn.Module) -> AbstractContextManager[Any]:
    """
    Return a context in which a model in eval mode can be differentiated: cuDNN has no backward pass for recurrent
    layers then, torch's own kernels have.

    :param model: the model.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()
