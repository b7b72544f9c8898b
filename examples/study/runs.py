"""
The rows of the study, as a file and as statistics: means, deviations, and differences to plain training.
"""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import report

from study.train import METHODS, PLAIN

RESAMPLES = 10_000
VERSIONS = ("torch", "fastNLP", "transformers")


@dataclass
class Runs:
    """
    :param folder: where ``runs.csv`` is.
    :param settings: what all rows have in common.
    :param rows: the rows, by method and seed.
    :param step_seconds: what a step of each method takes, measured in rounds in which all methods took turns.
    """

    folder: Path
    settings: dict
    rows: dict[tuple[str, int], dict] = field(default_factory=dict)
    step_seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, row: dict) -> None:
        """
        Take a row, and write all anew: whoever stops the program loses no finished run.

        :param row: ``method``, ``seed`` and what was measured.
        """
        self.rows[row["method"], row["seed"]] = row
        report.save_rows(list(self.rows.values()), self.folder / "runs.csv")

    def time(self, step_seconds: dict[str, list[float]]) -> None:
        """
        Take the times of steps, and write them.

        :param step_seconds: for each method, one of each round.
        """
        self.step_seconds = step_seconds
        (self.folder / "step_seconds.json").write_text(json.dumps(step_seconds, indent=2) + "\n", encoding="utf-8")

    @property
    def methods(self) -> list[str]:
        """In the order of :data:`~study.train.METHODS`, plain training first, and what else there is as it came."""
        found = dict.fromkeys(method for method, _ in self.rows)
        return [
            *(method for method in METHODS if method in found),
            *(method for method in found if method not in METHODS),
        ]

    def values(self, method: str, column: str) -> dict[int, float]:
        """
        :param method: a method.
        :param column: what was measured.
        :return: it, for each seed.
        """
        return {seed: row[column] for (name, seed), row in self.rows.items() if name == method}

    def differences(self, method: str, column: str, base: str = PLAIN) -> list[float]:
        """
        :param method: a method.
        :param column: what was measured.
        :param base: the method to compare with.
        :return: how much more it is than under ``base`` with the same seed, for each seed that both have.
        """
        own, other = self.values(method, column), self.values(base, column)
        return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def read_runs(folder: Path, settings: dict) -> Runs:
    """
    :param folder: where ``runs.csv`` may be.
    :param settings: those of this study. The file ``settings.json`` beside it remembers them.
    :return: the table so far.
    :raises ValueError: the rows there are of other settings.
    """
    settings = {**settings, **{name: version(name) for name in VERSIONS}}
    known = folder / "settings.json"
    if known.is_file():
        others = json.loads(known.read_text(encoding="utf-8"))
        wrong = sorted(name for name in others.keys() | settings.keys() if others.get(name) != settings.get(name))
        if wrong:
            told = ", ".join(f"{name}={others.get(name)} (now {settings.get(name)})" for name in wrong)
            raise ValueError(f"Expected the settings of the runs in {folder}, {told}. Choose another `--output-dir`.")
    folder.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return Runs(folder, settings, *read_measured(folder))


def read_measured(folder: Path) -> tuple[dict[tuple[str, int], dict], dict[str, list[float]]]:
    """
    :param folder: where ``runs.csv`` and ``step_seconds.json`` may be.
    :return: the rows and the times of steps, as :class:`Runs` has them.
    """
    rows, step_seconds = {}, {}
    if (folder / "runs.csv").is_file():
        with (folder / "runs.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                numbers = {name: json.loads(value) for name, value in row.items() if name != "method"}
                rows[row["method"], numbers["seed"]] = {"method": row["method"], **numbers}
    if (folder / "step_seconds.json").is_file():
        step_seconds = json.loads((folder / "step_seconds.json").read_text(encoding="utf-8"))
    return rows, step_seconds


def spread(values: list[float]) -> float:
    """
    :param values: numbers.
    :return: their standard deviation; 0 for a single one.
    """
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: list[float]) -> str:
    """
    :param values: numbers.
    :return: their mean as a table shows it, and their standard deviation where there are several.
    """
    return f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def interval(differences: list[float], resamples: int = RESAMPLES) -> tuple[float, float]:
    """
    The 95 % percentile bootstrap interval of the mean (Efron 1979), over seeds.

    :param differences: one for each seed.
    :param resamples: how often to draw as many with replacement.
    :return: its ends.

    Example::

        >>> low, high = interval([0.01, 0.02, 0.03])
        >>> 0.01 <= low < 0.02 < high <= 0.03
        True
    """
    drawn = np.random.default_rng(0).choice(differences, size=(resamples, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
