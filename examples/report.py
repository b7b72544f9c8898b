"""
What a run leaves behind: the time of its steps, its files, and a line in a table.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fastNLP import Callback
from rich.console import Console
from rich.table import Table

WARM_UP = 5


@dataclass(frozen=True)
class Result:
    """
    :param method: name of the method.
    :param accuracy: accuracy on the test data, between 0 and 1.
    :param step_seconds: median time of a training step.
    :param steps: how many steps were trained.
    :param test_size: how many examples the accuracy is taken over.
    """

    method: str
    accuracy: float
    step_seconds: float
    steps: int
    test_size: int

    @property
    def standard_error(self) -> float:
        """The standard error of the accuracy that comes from the size of the test data alone."""
        return (self.accuracy * (1 - self.accuracy) / self.test_size) ** 0.5


class StepTimer(Callback):
    """
    Measures training steps, from the batch on its device to the cleared gradients.

    :param device: where the model is; on a GPU, steps are waited for before the clock is read.
    """

    def __init__(self, device: str):
        super().__init__()
        self.synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self.seconds: list[float] = []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.synchronize()
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer):
        self.synchronize()
        self.seconds.append(time.perf_counter() - self._begin)

    @property
    def median(self) -> float:
        """The median, without the first steps, which also allocate memory; with them, if there are no others."""
        return statistics.median(self.seconds[WARM_UP:] or self.seconds)


def save(result: Result, settings: dict, folder: Path) -> None:
    """
    Write ``metrics.json``: the result and the settings that led to it.

    :param result: the result.
    :param settings: what the run was started with.
    :param folder: where to; it is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(result), "settings": settings}, indent=2, default=str)
    _replace(folder / "metrics.json", text + "\n")


def save_table(results: Sequence[Result], file: Path) -> None:
    """
    :param results: the results, one per line.
    :param file: the CSV file to write.
    """
    save_rows([asdict(result) for result in results], file)


def save_rows(rows: Sequence[dict], file: Path) -> None:
    """
    Write a table whole or not at all.

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
    Print accuracy and cost, a line a method.

    :param results: the results; the first is what the others' cost is compared with.
    :param title: printed above the table.
    :param console: where to; the terminal by default.
    """
    caption = "±: standard error from the size of the test data. One seed: differences of that size say nothing."
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
