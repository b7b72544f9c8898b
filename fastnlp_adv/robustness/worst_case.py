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

from ..checks import check_arguments, check_count, check_flag, check_number
from ..embedding import find_embeddings
from ..functional import ascend, group_norm, project, random_in_ball
from ..tapped import Tapped, taps_on
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
        """The sums of the highest losses, of the examples, the errors and the labels: what averages are made of."""
        sums = [self.highest.sum(), self.highest.new_tensor(len(self.highest)), self.errors.sum()]
        return torch.stack([*sums, self.labels.sum()])

    def consider(self, found: Scores, values: list[list[Tensor]]) -> None:
        """More errors are worse, then a higher loss: an example that was once predicted wrong stays wrong."""
        losses = found.losses.detach()
        worse = (found.errors > self.errors) | ((found.errors == self.errors) & (losses > self.losses))
        self.losses = torch.where(worse, losses, self.losses)
        self.errors = torch.where(worse, found.errors, self.errors)
        self.highest = torch.where(losses > self.highest, losses, self.highest)
        self.values = [
            [torch.where(worse.view(-1, *[1] * (v.dim() - 1)), v, old) for v, old in zip(new, known, strict=True)]
            for new, known in zip(values, self.values, strict=True)
        ]


class WorstCase(Tapped):
    r"""
    Searches for the worst perturbation of each example, by projected gradient ascent from random starts (Madry et al.
    2018, https://arxiv.org/abs/1706.06083) on the outputs of the lookups, in an l2 ball an example:

    .. math:: r_{t+1} = \Pi_\epsilon\bigl(r_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr).

    Padding (``padding_idx``) is not perturbed; where a forward looks up several times, each lookup has a ball of its
    own. Costs ``restarts * (steps + 1)`` forward passes for each epsilon, and a backward pass to the embeddings for
    nearly all of them. Its hooks are on the model inside :meth:`running` alone.

    :param model: the model; its weights and gradients are never written.
    :param epsilons: see :func:`robust_evaluate`.
    :param relative: see :func:`robust_evaluate`.
    :param steps: see :func:`robust_evaluate`.
    :param restarts: see :func:`robust_evaluate`.
    :param alpha: see :func:`robust_evaluate`.
    :param emb_name: see :func:`robust_evaluate`.
    :param seed: see :func:`robust_evaluate`.
    :raises ValueError: if an argument is out of range, or no embedding matches ``emb_name``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        epsilons: Sequence[float],
        relative: bool = True,
        steps: int = 20,
        restarts: int = 3,
        alpha: float | None = None,
        emb_name: str | None = None,
        seed: int = 0,
    ):
        self.check(
            epsilons=epsilons,
            relative=relative,
            steps=steps,
            restarts=restarts,
            alpha=alpha,
            emb_name=emb_name,
            seed=seed,
        )
        super().__init__(model, taps_on(model, emb_name, "sequence"))
        self.close()
        self.epsilons = sorted({float(epsilon) for epsilon in epsilons if epsilon > 0})
        self._model = model
        self._weights = [embedding.weight for embedding in find_embeddings(model, emb_name).embeddings]
        self._relative, self._steps, self._restarts, self._alpha = relative, steps, restarts, alpha
        self._seed = seed
        self.begin()

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """
        Check the arguments alone, without a model.

        :param arguments: those of the constructor, but for the model.
        :raises ValueError: if one is out of range.
        """
        check_arguments(
            arguments,
            epsilons=_check_epsilons,
            relative=check_flag,
            restarts=check_count,
            alpha=lambda name, value: None if value is None else check_number(name, value, positive=True),
            seed=lambda name, value: check_count(name, value, least=0),
        )

    def begin(self) -> None:
        """Begin an evaluation: from the seed, so that all evaluations have the same starts, and on today's weights."""
        self.noise.generator = torch.Generator(self._weights[0].device).manual_seed(self._seed)
        norms = [group_norm(weight.detach(), dims=(1,)).mean().item() for weight in self._weights]
        self._units = norms if self._relative else [1.0] * len(norms)

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
        places = [tap.values() for tap in self.taps]
        _check_rows(places, clean.losses)
        losses = clean.losses.detach()
        worst = _Worst(losses, clean.errors, clean.labels, losses, [[value for value, _ in each] for each in places])
        starts = [self._start() for _ in range(self._restarts)]
        yield 0.0, worst
        for epsilon in self.epsilons:
            for start in starts:
                self._climb(epsilon, start, places, forward, worst)
            yield epsilon, worst

    def at(self, worst: _Worst, forward: Callable[[], Any]) -> Any:
        """
        Run the model at the worst points.

        :param worst: what :meth:`search` yielded.
        :param forward: runs the model on the batch.
        :return: what ``forward`` returns, without its graph.
        """
        self._perturb(worst.values)
        return _detached(self.run(forward))

    def run(self, forward: Callable[[], Any]) -> Any:
        """One forward pass, with gradients on: without them a lookup does not know its place."""
        for tap in self.taps:
            tap.begin_pass(keep_leaves=True)
        with torch.enable_grad(), differentiable(self._model):
            return forward()

    def _start(self) -> list[list[Tensor]]:
        """A point of the ball of radius 1, which every epsilon begins at its multiple of."""
        return [
            [
                random_in_ball(v, 1.0, dims=dims, free=free, generator=self.noise.on(v.device))
                for (v, dims), free in zip(tap.values(), tap.free(), strict=True)
            ]
            for tap in self.taps
        ]

    def _climb(
        self,
        epsilon: float,
        start: list[list[Tensor]],
        places: list,
        forward: Callable[[], Scores],
        worst: _Worst,
    ) -> None:
        alpha = 2.5 * epsilon / self._steps if self._alpha is None else self._alpha
        values = [[epsilon * unit * v for v in each] for unit, each in zip(self._units, start, strict=True)]
        for left in reversed(range(self._steps + 1)):
            self._perturb(values)
            found = self.run(forward)
            worst.consider(found, values)
            if left:
                self._backward(found)
                values = [
                    [
                        project(ascend(v, g, alpha * unit, dims=dims), epsilon * unit, dims=dims)
                        for v, g, (_, dims) in zip(each, tap.gradients(), place, strict=True)
                    ]
                    for tap, unit, each, place in zip(self.taps, self._units, values, places, strict=True)
                ]

    def _backward(self, found: Scores) -> None:
        with torch.enable_grad():
            total = found.heights.sum()
        self.differentiate(total)

    def _perturb(self, values: list[list[Tensor]]) -> None:
        for tap, each in zip(self.taps, values, strict=True):
            tap.perturb(each)


def _check_epsilons(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"Expected `{name}` to be a list or tuple of numbers, but got {value!r}.")
    for each in value:
        check_number(name, each)


def _check_rows(places: list, losses: Tensor) -> None:
    for each in places:
        for value, _ in each:
            if len(value) != len(losses):
                raise ValueError(
                    "Expected a lookup to have one row for each example, since the worst point is chosen for each, but "
                    f"got a lookup of {len(value)} rows for {len(losses)} losses. Give the model ids of shape "
                    "(examples, ...), or name with `emb_name` an embedding that is looked up so."
                )


def _detached(value: Any) -> Any:
    """Of the same type, so that users find the entries of a ``ModelOutput`` where they look for them."""
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


def differentiable(model: nn.Module) -> AbstractContextManager:
    """
    Where a model in eval mode can be differentiated: cuDNN has no backward pass for recurrent layers then, torch's own
    kernels have.

    :param model: the model.
    """
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()
