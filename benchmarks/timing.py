"""Steps of several variants, taken in turn on one model, so that a machine whose speed drifts slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fastNLP import Trainer
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.setting import Setting
from benchmarks.variants import Variant

WARM_UP = 2  # rounds that are not counted, or one, where that takes longer than this many seconds:
LONG = 10.0


class Loader(DataLoader):
    """One batch as it is. Tells the indices of its examples, as fastNLP's loader does."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        super().__init__([batch], batch_size=None)
        self._indices = list(range(len(batch["labels"])))

    def get_batch_indices(self) -> list[int]:
        return self._indices


class Stepper:
    """
    Takes training steps of one variant in a Trainer of its own.

    With ``passes_only`` neither the optimizer's step nor the clearing of gradients is part of :meth:`step`.
    """

    def __init__(self, model: nn.Module, variant: Variant, setting: Setting, *, passes_only: bool = False):
        self.setting = setting
        self.trainer = Trainer(
            model=model,
            driver="torch",
            device=setting.device,
            train_dataloader=Loader(setting.samples()),
            optimizers=torch.optim.SGD(model.parameters(), lr=1e-4),
            callbacks=variant.callbacks(),
            batch_step_fn=variant.loop(model) if variant.loop else None,
            progress_bar=None,
        )
        self.trainer.n_batches = 10**6
        self.trainer.on_train_begin()
        self.batch: Any = self.trainer.move_data_to_device(setting.samples())
        self.clear: Callable[[], None] = lambda: None
        if passes_only:
            self.clear = self.trainer.zero_grad
            self.trainer.step = self.trainer.zero_grad = lambda: None

    def prepare(self) -> None:
        """What comes before the clock starts."""
        self.trainer.on_train_batch_begin(self.batch, self.trainer.dataloader.get_batch_indices())
        self.synchronize()

    def step(self) -> None:
        self.trainer.train_batch_loop.batch_step_fn(self.trainer, self.batch)
        self.synchronize()

    def synchronize(self) -> None:
        if self.setting.device != "cpu":
            torch.cuda.synchronize()

    def timed(self) -> float:
        """The seconds that one step takes."""
        self.prepare()
        begin = time.perf_counter()
        self.step()
        seconds = time.perf_counter() - begin
        self.clear()
        return seconds


def steppers(
    setting: Setting, variants: Sequence[Variant], *, model: nn.Module | None = None, passes_only: bool = False
) -> dict[str, Stepper]:
    """All variants on one model: at a million words there would be no memory for a model each."""
    model = setting.model() if model is None else model
    return {v.name: Stepper(model, v, setting, passes_only=passes_only) for v in variants}


def measure(
    steps: Mapping[str, Stepper],
    *,
    rounds: int,
    least: int = 5,
    seconds: float = float("inf"),
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[float]]:
    """
    Take steps in turn until ``rounds`` are done, or ``seconds`` are over and at least ``least`` rounds are done. Each
    round begins with another variant, since what a step leaves in the caches helps or hinders the next.
    """
    names = list(steps)
    found: dict[str, list[float]] = {name: [] for name in names}
    _warm_up(steps)
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= least and time.perf_counter() - begin > seconds:
            break
        tick(done, rounds)
        first = done % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(steps[name].timed())
    tick(rounds, rounds)
    return found


def _warm_up(steps: Mapping[str, Stepper]) -> None:
    begin = time.perf_counter()
    for _ in range(WARM_UP):
        for stepper in steps.values():
            stepper.timed()
        if time.perf_counter() - begin > LONG:
            return
