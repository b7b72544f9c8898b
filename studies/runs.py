"""
The runs of a study: its files, and the statistics of its pages.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import report
import torch

from studies.methods import PLAIN, WHOLE

RESAMPLES = 10_000
VERSIONS = ("torch", "fastNLP", "transformers")
TEXT_COLUMNS = ("model", "method", "version")

#: of one text: how much of it is right, and out of how much; ``None`` for a text that does not count
Counts = Sequence[float] | None
#: model, method and seed of a run
Key = tuple[str, str, int]


def key_of(row: Mapping) -> Key:
    """Return the key of a row: its model (``""`` in a study of one model), method and seed."""
    return row.get("model", ""), row["method"], row["seed"]


def share(counts: Sequence[Counts]) -> float:
    """Compute the accuracy or the F1 from the counts of each text."""
    kept = [each for each in counts if each is not None]
    total = sum(whole for _, whole in kept)
    return sum(right for right, _ in kept) / total if total else float("nan")


def machine() -> str:
    """Return the machine of the runs."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}"


@dataclass
class Runs:
    """
    :param folder: where ``runs.csv``, ``study.json`` and ``outcomes.json.gz`` are.
    :param about: ``task``, ``command``, ``machine``, and under ``settings`` the settings of all rows.
    :param rows: the rows, in the order in which they were run.
    :param outcomes: the counts of each attacked text, by column, for each run.
    :param rounds: the time of a step of each method, in rounds in which methods took turns.
    """

    folder: Path
    about: dict
    rows: dict[Key, dict] = field(default_factory=dict)
    outcomes: dict[Key, dict[str, list[Counts]]] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def settings(self) -> dict:
        return self.about["settings"]

    def add(self, row: dict, outcomes: dict[str, list[Counts]]) -> None:
        """Take a run, and write all files anew: a stopped study loses no finished run."""
        self.outcomes[key_of(row)] = outcomes
        self.rows[key_of(row)] = {**row, **{name: share(counts) for name, counts in outcomes.items()}}
        self.save()

    def save(self) -> None:
        """Write the files."""
        report.save_rows(list(self.rows.values()), self.folder / "runs.csv")
        about = json.dumps({**self.about, "rounds": self.rounds}, indent=2, ensure_ascii=False)
        _write(self.folder / "study.json", (about + "\n").encode())
        if self.outcomes:
            packed = json.dumps([[*key, found] for key, found in self.outcomes.items()]).encode()
            _write(self.folder / "outcomes.json.gz", gzip.compress(packed, mtime=0))  # the same bytes each time

    def of(self, model: str) -> Runs:
        """Return the runs of one model of the study."""
        return replace(self, rows={key: row for key, row in self.rows.items() if key[0] == model})

    @property
    def methods(self) -> list[str]:
        """Plain training and FGM first, the others in the order in which they were run."""
        found = dict.fromkeys(method for _, method, _ in self.rows)
        return sorted(found, key=lambda method: (method != PLAIN, method != WHOLE))

    def values(self, method: str, column: str) -> dict[int, float]:
        """Return a column of a method, by seed."""
        return {seed: row[column] for (_, name, seed), row in self.rows.items() if name == method}

    def learned(self, method: str) -> int:
        """Return with how many seeds a method learned."""
        return sum(self.values(method, "learned").values())

    def cost(self, method: str) -> list[float]:
        """Return the cost of a step in plain steps, round by round; empty if it was not timed."""
        return [times[method] / times[PLAIN] for times in self.rounds if method in times]

    def difference(self, base: str, method: str, column: str) -> tuple[float, float, float] | None:
        """
        Compare two methods with the seeds that both have.

        :return: how much more a column is than under ``base``, in percentage points, and the ends of the 95 %
            percentile bootstrap interval (Efron 1979), over texts as well where their outcomes are known; ``None``
            without a common seed.
        """
        own, other = self.values(method, column), self.values(base, column)
        seeds = sorted(own.keys() & other.keys())
        if not seeds:
            return None
        gaps = [100 * (own[seed] - other[seed]) for seed in seeds]
        model = next(iter(self.rows))[0]
        counts = [[self.outcomes.get((model, m, seed), {}).get(column) for seed in seeds] for m in (base, method)]
        if any(each is None for side in counts for each in side):
            return float(np.mean(gaps)), *interval(gaps)
        return float(np.mean(gaps)), *interval_over_texts(*counts)

    def over_texts(self) -> bool:
        """Return whether the outcomes of all attacked texts are known."""
        return self.rows.keys() <= self.outcomes.keys()


def read_runs(folder: Path, task: str = "", settings: Mapping | None = None) -> Runs:
    """
    :param folder: where the files may be.
    :param task: the name of the task.
    :param settings: the settings of this study; ``None`` to take them from ``study.json``.
    :return: the runs so far.
    :raises ValueError: the runs there have other settings.
    """
    rows, outcomes, rounds, known = {}, {}, [], folder / "study.json"
    if settings is not None:
        about = {"task": task, "settings": {**settings, **{name: version(name) for name in VERSIONS}}}
    if known.is_file():
        others = json.loads(known.read_text(encoding="utf-8"))
        rounds = others.pop("rounds")
        if settings is not None:
            old, new = ({"task": each["task"], **each["settings"]} for each in (others, about))
            if wrong := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
                told = ", ".join(f"{name}={old.get(name)} (now {new.get(name)})" for name in wrong)
                raise ValueError(
                    f"Expected the settings of the runs in {folder}, {told}. Choose another `--output-dir`."
                )
        about = others
    elif settings is None:
        raise FileNotFoundError(f"Expected {folder} to be the folder of a study, but it has no study.json.")
    if (folder / "runs.csv").is_file():
        with (folder / "runs.csv").open(encoding="utf-8", newline="") as stream:
            for texts in csv.DictReader(stream):
                row = {name: text if name in TEXT_COLUMNS else json.loads(text) for name, text in texts.items()}
                rows[key_of(row)] = row
    if (folder / "outcomes.json.gz").is_file():
        packed = json.loads(gzip.decompress((folder / "outcomes.json.gz").read_bytes()))
        outcomes = {tuple(key): found for *key, found in packed}
    return Runs(folder, about, rows, outcomes, rounds)


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, file)


def mean_and_spread(values: Sequence[float]) -> str:
    """Write a mean as a table shows it, and the standard deviation where there are several values."""
    return f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def spread(values: Sequence[float]) -> float:
    """Compute the standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Compute the bootstrap interval of a mean over seeds."""
    drawn = np.random.default_rng(0).choice(differences, size=(RESAMPLES, len(differences)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def interval_over_texts(base: Sequence[Sequence[Counts]], method: Sequence[Sequence[Counts]]) -> tuple[float, float]:
    """Compute the bootstrap interval of a mean difference over seeds and texts, from the counts for each seed."""
    of_texts, of_seeds = _draws(len(base[0]), len(base))
    drawn = []
    for own in (base, method):
        table = np.array([[[0.0, 0.0] if each is None else each for each in counts] for counts in own])
        drawn.append((of_texts @ table[..., 0].T) / (of_texts @ table[..., 1].T))
    gaps = 100 * ((drawn[1] - drawn[0]) * of_seeds).sum(1) / len(base)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _draws(texts: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each text and each seed is drawn, in each resample."""
    generator = np.random.default_rng(0)
    of_texts = generator.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES).astype(float)
    return of_texts, generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
