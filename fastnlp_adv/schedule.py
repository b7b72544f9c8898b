"""When a method acts, and how strongly: ``start``, ``every`` and ``warmup``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from .options import Options, check_count, check_number, is_finite, must_be, option, options

#: optimizer steps whose mean loss the fall is measured from with ``warmup="auto"``; they are plain
FIRST_STEPS = 5
#: how far the average moves towards the loss of an optimizer step
MOMENTUM = 0.1
#: the relative fall of the loss at which ``warmup="auto"`` reaches the whole perturbation
FALL = 0.3


@dataclass
class Progress:
    """
    Where a training stands, as its loop or Trainer knows it.

    :param batches: the batches, or micro-batches, that have been trained.
    :param accumulation_steps: how many of them make an optimizer step.
    :param total_steps: the optimizer steps of the whole training; ``None`` where it is not known.
    """

    batches: int = 0
    accumulation_steps: int = 1
    total_steps: float | None = None

    @property
    def step(self) -> int:
        """The number of the optimizer step that the next batch belongs to."""
        return self.batches // self.accumulation_steps

    def begin_batch(self, accumulation_steps: int, total_steps: float | None) -> None:
        """Take the arguments of a step in a plain loop, before it is counted."""
        check_count("accumulation_steps", accumulation_steps)
        self.accumulation_steps = accumulation_steps
        self.total_steps = total_steps if total_steps is not None else self.total_steps


def _steps_of(name: str, value: float, progress: Progress, *, whole: float) -> float:
    """Return a number of optimizer steps that is given as such or as a fraction (below or up to 1) of the training."""
    if value == 0 or value >= whole:
        return value
    if progress.total_steps is None:
        raise ValueError(
            f"Expected `total_steps`, since `{name}={value:g}` is a fraction of the training, but got None. Pass the "
            f"number of optimizer steps as `total_steps=`, or give `{name}` in steps."
        )
    return value * progress.total_steps


@options
class Scheduled(Options):
    """Acts in some optimizer steps only."""

    start: float = option(
        default=0,
        check=check_number,
        doc="plain optimizer steps before the method begins; below 1, a fraction of the training",
    )
    every: int = option(default=1, check=check_count, doc="the method acts in one of this many optimizer steps")

    def first_step(self, progress: Progress) -> int:
        """Return the number of the optimizer step that the method sets in at."""
        # 0.07 of 100 steps is 7.000000000000001 to the computer
        return math.ceil(_steps_of("start", self.start, progress, whole=1) - 1e-6)

    def is_due(self, progress: Progress) -> bool:
        """Tell whether the method acts in this optimizer step; its micro-batches are treated alike."""
        since = progress.step - self.first_step(progress)
        return since >= 0 and since % self.every == 0


@options
class Growing(Scheduled):
    """Acts with a strength that grows from 0 to 1."""

    warmup: float | Literal["auto"] = option(
        default=0,
        check=must_be(
            "a finite, non-negative number or 'auto'",
            lambda value: value == "auto" or (is_finite(value) and value >= 0),
        ),
        doc="the number of optimizer steps, from ``start`` on, over which the perturbation (``epsilon`` and ``alpha``, "
        "``gamma`` or ``rho``) grows from 0 to its value; up to 1, a fraction of the training. With 0 it has its full "
        'value from the first step. With ``"auto"`` it grows as the clean loss falls, after 5 plain steps: see '
        ":class:`~fastnlp_adv.schedule.Pacing`",
    )

    def growing_steps(self, progress: Progress) -> float:
        """Return the number of steps of ``warmup``. A fraction ends with the training, also with a late ``start``."""
        if self.warmup == "auto":
            return 0
        steps = _steps_of("warmup", self.warmup, progress, whole=1 + 1e-9)
        if 0 < self.warmup <= 1:
            assert progress.total_steps is not None
            steps = min(steps, max(0.0, progress.total_steps - self.first_step(progress)))
        return steps

    def strength_at(self, progress: Progress, pacing: Pacing) -> Tensor | float:
        """Return the factor of all lengths in this optimizer step; 0 where the method does not act."""
        if self.warmup == "auto":
            pacing.begin_step(progress.step)
            return pacing.strength() if self.is_due(progress) else 0.0
        if not self.is_due(progress):
            return 0.0
        number = progress.step - self.first_step(progress) + 1  # at 0 the first step would run for nothing
        growing = self.growing_steps(progress)
        return number / growing if number < growing else 1.0


class Pacing:
    r"""
    The strength of ``warmup="auto"``, which follows the fall of the loss:

    .. math:: \mathrm{clip}\bigl((1 - \mathrm{average} / \mathrm{first}) / 0.3,\; 0,\; 1\bigr)

    ``first`` is the mean loss of the first 5 optimizer steps, in which the method does not act. ``average`` starts
    there and moves by 0.1 towards the loss of each optimizer step, the mean over its micro-batches and processes, so
    the strength depends on the losses of earlier steps. A loss that is not finite is left out. The strength is a tensor
    on the device; ``first`` is read once, and nothing else waits for the device.

    A model that has been trained before has little loss left, so its perturbation may stay small.
    """

    def __init__(self) -> None:
        #: the mean loss of the first steps; ``None`` until there are enough
        self.first: float | None = None
        #: the losses of the first optimizer steps, and of the micro-batches of the current one
        self.early: list[Tensor] = []
        self.current: list[Tensor] = []
        self.step: int | None = None
        self.average: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Take the loss of a micro-batch of an optimizer step."""
        self.begin_step(step)
        self.current.append(loss.detach().to(torch.promote_types(loss.dtype, torch.float32)))

    def begin_step(self, step: int) -> None:
        """Average the losses of the optimizer step before, if this is another one."""
        if self.step is not None and step != self.step and self.current:
            self._take(mean_over_processes(torch.stack([loss.reshape(()) for loss in self.current]).mean()))
            self.current = []
        self.step = step

    def _take(self, loss: Tensor) -> None:
        if self.average is None:
            self.early.append(loss)
            if len(self.early) == FIRST_STEPS:
                self._begin(torch.stack(self.early))
            return
        moved = torch.lerp(self.average, loss.to(self.average), MOMENTUM)
        self.average = torch.where(moved.isfinite(), moved, self.average)

    def _begin(self, losses: Tensor) -> None:
        first = losses[losses.isfinite()].mean().item()
        if not first > 0:
            raise ValueError(
                f"Expected a positive loss with `warmup='auto'`, but got a mean of {first:.4g} over the first "
                f"{FIRST_STEPS} optimizer steps. Use `warmup=1.0`, which grows over the training."
            )
        self.first, self.early = first, []
        self.average = losses.new_tensor(first)

    def strength(self) -> Tensor | float:
        """Return the strength; 0 in the first steps."""
        if self.average is None or self.first is None:
            return 0.0
        return ((1 - self.average / self.first) / FALL).clamp(0, 1)

    def describe(self, name: str, size: str) -> str:
        """Return a line about where the strength stands; it reads the device."""
        if self.average is None or self.first is None:
            return f"{name}: no perturbation yet, since `warmup='auto'` begins after {FIRST_STEPS} optimizer steps"
        return (
            f"{name}: {size} at {float(self.strength()):.2f} of its value, since the loss has fallen from "
            f"{self.first:.3g} to {float(self.average):.3g}; a fall of {FALL:.0%} reaches the whole value"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        average = None if self.average is None else self.average.cpu()
        early, current = ([loss.cpu() for loss in losses] for losses in (self.early, self.current))
        return {"first": self.first, "average": average, "early": early, "current": current, "step": self.step}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a :meth:`state_dict`."""
        self.first, self.step = state["first"], state["step"]
        self.average = None if state["average"] is None else state["average"].to(device)
        self.early, self.current = ([loss.to(device) for loss in state[name]] for name in ("early", "current"))


def mean_over_processes(loss: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return loss
    dist.all_reduce(loss)
    return loss / dist.get_world_size()
