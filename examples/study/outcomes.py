"""
What became of each attacked text, and how sure a difference between two methods is, over seeds and texts together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from study.runs import Runs, interval

RESAMPLES = 10_000

#: of one text: what is right, and how much it is to be compared with; ``None`` for what does not count
Counts = Sequence[float] | None


def outcome_file(folder: Path, method: str, seed: int) -> Path:
    """
    :param folder: of the study.
    :param method: a method.
    :param seed: a seed.
    :return: where it is written what became of each text.
    """
    return folder / "outcomes" / f"{method.lower().replace(' ', '')}-{seed}.json"


def save_outcomes(folder: Path, method: str, seed: int, outcomes: Mapping[str, Sequence[Counts]]) -> dict[str, float]:
    """
    Write what became of each text.

    :param folder: of the study.
    :param method: a method.
    :param seed: a seed.
    :param outcomes: the counts of each text, for each column of the table.
    :return: the columns: the accuracy or the F1 over all texts.
    """
    file = outcome_file(folder, method, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(outcomes), encoding="utf-8")
    return {name: share(counts) for name, counts in outcomes.items()}


def share(counts: Sequence[Counts]) -> float:
    """
    :param counts: of each text.
    :return: the accuracy or the F1.

    Example::

        >>> share([[1.0, 1.0], [0.0, 1.0], None])
        0.5
    """
    kept = [each for each in counts if each is not None]
    total = sum(whole for _, whole in kept)
    return sum(right for right, _ in kept) / total if total else float("nan")


def difference(runs: Runs, base: str, method: str, column: str) -> tuple[float, float, float]:
    """
    :param runs: the runs; it knows the folder.
    :param base: the method to compare with.
    :param method: a method.
    :param column: what was measured.
    :return: how much more it is than under ``base``, in percentage points, and the ends of the 95 % bootstrap interval:
        over seeds and texts where it is known for each text, over seeds elsewhere.
    """
    found = [100 * each for each in runs.differences(method, column, base)]
    seeds = sorted(runs.values(base, column).keys() & runs.values(method, column).keys())
    counts = {name: [_counts(runs.folder, name, seed, column) for seed in seeds] for name in (base, method)}
    if any(each is None for own in counts.values() for each in own):
        return (float(np.mean(found)), *interval(found))
    generator = np.random.default_rng(0)
    texts = len(counts[base][0] or ())
    of_texts = generator.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES).astype(float)
    of_seeds = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    drawn = {}
    for name, own in counts.items():
        table = np.array(own)
        drawn[name] = (of_texts @ table[..., 0].T) / (of_texts @ table[..., 1].T)
    gaps = 100 * ((drawn[method] - drawn[base]) * of_seeds).sum(1) / len(seeds)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return float(np.mean(found)), float(low), float(high)


def _counts(folder: Path, method: str, seed: int, column: str) -> list[Sequence[float]] | None:
    file = outcome_file(folder, method, seed)
    counts = json.loads(file.read_text(encoding="utf-8")).get(column) if file.is_file() else None
    return None if counts is None else [[0.0, 0.0] if each is None else each for each in counts]
