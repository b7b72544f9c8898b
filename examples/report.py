"""
The results of a run: the time of its steps, its files, a row of a table, and a sentence that compares two rows.
"""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fastNLP import Callback
from rich import box
from rich.console import Console
from rich.table import Table

WARM_UP = 5
CLEAR = 2  # standard errors that a difference has to exceed


@dataclass(frozen=True)
class Result:
    """
    :param method: name of the method.
    :param accuracy: accuracy on the test data, between 0 and 1.
    :param step_seconds: median time of a training step.
    :param steps: number of training steps.
    :param test_size: number of examples in the accuracy.
    """

    method: str
    accuracy: float
    step_seconds: float
    steps: int
    test_size: int

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy from the size of the test data."""
        return (self.accuracy * (1 - self.accuracy) / self.test_size) ** 0.5


@dataclass(frozen=True)
class Comparison:
    """
    A method in the comparison: its accuracy on clean and on attacked texts, and its cost.

    :param method: name of the method.
    :param step_seconds: median time of a training step.
    :param right: by the name of a column, whether each text is predicted right; ``None`` for a text that the attack
        cannot change. A column has the same texts, in the same order, for all methods.
    """

    method: str
    step_seconds: float
    right: dict[str, list[bool | None]]

    def accuracy(self, column: str) -> tuple[float, float]:
        """Return the accuracy and its standard error from the number of texts (binomial)."""
        return _mean(each for each in self.right[column] if each is not None)

    def difference(self, other: Comparison, column: str) -> tuple[float, float]:
        """Return the difference in accuracy from another method and its standard error, paired by text."""
        pairs = zip(self.right[column], other.right[column], strict=True)
        return _mean(mine - its for mine, its in pairs if mine is not None and its is not None)

    def row(self) -> dict[str, float | str]:
        """Return the method, the time of a step, and the accuracy and standard error of each column."""
        shares = {column: self.accuracy(column) for column in self.right}
        errors = {f"{column}, standard error": error for column, (_, error) in shares.items()}
        accuracies = {column: accuracy for column, (accuracy, _) in shares.items()}
        return {"method": self.method, "step_seconds": self.step_seconds, **accuracies, **errors}


def _mean(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    known = list(values)
    if not known:
        return math.nan, math.nan
    return statistics.fmean(known), (statistics.pvariance(known) / len(known)) ** 0.5


class StepTimer(Callback):
    """
    Measures training steps, from the batch on its device to the cleared gradients.

    :param device: the model's device; on a GPU, the clock synchronizes with the device.
    :param clock: returns seconds.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter):
        super().__init__()
        self.clock = clock
        self.synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self.seconds: list[float] = []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.synchronize()
        self._begin = self.clock()

    def on_train_batch_end(self, trainer):
        self.synchronize()
        self.seconds.append(self.clock() - self._begin)

    @property
    def median(self) -> float:
        """The median, without the first steps, which also allocate memory; with them, if there are no others."""
        return statistics.median(self.seconds[WARM_UP:] or self.seconds)


def save(result: dict, settings: dict, folder: Path) -> None:
    """
    Write ``metrics.json``: the result and its settings.

    :param result: the result.
    :param settings: the arguments of the run.
    :param folder: the folder, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "settings": settings}, indent=2, default=str)
    _replace(folder / "metrics.json", text + "\n")


def save_rows(rows: Sequence[dict], file: Path) -> None:
    """
    Write a table completely or not at all.

    :param rows: the rows, which have the same columns.
    :param file: the CSV file to write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, file)


def _replace(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def print_table(results: Sequence[Result], title: str, console: Console | None = None) -> None:
    """
    Print accuracy and cost, one line per method.

    :param results: the results; the first is the unit of cost.
    :param title: printed above the table.
    :param console: the output; the terminal by default.
    """
    caption = "±: standard error from the size of the test data. One seed: smaller differences are not significant."
    table = Table(title=title, caption=caption)
    for name in ("method", "test accuracy", "seconds per step", f"ratio to {results[0].method}"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for result in results:
        table.add_row(
            result.method,
            f"{result.accuracy:.2%} ± {result.standard_error:.2%}",
            f"{result.step_seconds:.3f}",
            f"{result.step_seconds / results[0].step_seconds:.2f}",
        )
    (console or Console()).print(table)


def print_comparison(results: Sequence[Comparison], console: Console | None = None) -> None:
    """
    Print accuracies in % and cost, a row per method, in 80 columns if names are at most 28 wide or can be broken.

    :param results: the results; the first is the unit of cost.
    :param console: the output; the terminal by default.
    """
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    for column in results[0].right:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    for result in results:
        shares = (result.accuracy(column) for column in result.right)
        cells = [f"{100 * accuracy:.1f} ±{100 * error:.1f}" for accuracy, error in shares]
        table.add_row(result.method, *cells, f"{result.step_seconds / results[0].step_seconds:.2f}")
    (console or Console()).print(table)


def sentence(result: Comparison, other: Comparison) -> str:
    """
    Describe where one method is ahead of another, where it is behind, and where there are too few texts to decide.

    :param result: a method.
    :param other: the method that it is compared with.
    :return: the sentence. It calls a difference clear that is larger than :data:`CLEAR` of its standard errors.
    """
    found: dict[str, list[str]] = {"ahead of": [], "behind": [], "not clearly apart from": []}
    for column in result.right:
        difference, error = result.difference(other, column)
        verdict = "not clearly apart from"
        if abs(difference) > CLEAR * error:
            verdict = "ahead of" if difference > 0 else "behind"
        found[verdict].append(f"{column} ({100 * difference:+.1f} ±{100 * error:.1f})")
    parts = [f"{verdict} {other.method} on {_listed(each)}" for verdict, each in found.items() if each]
    times = result.step_seconds / other.step_seconds
    return f"{result.method} is {', '.join(parts)}; a step takes {times:.1f} times as long."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
