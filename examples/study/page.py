"""
The results of the study as a page: what was run, what came out, and how sure that is.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from study import figures
from study.runs import VERSIONS, Runs, interval, mean_and_spread
from study.train import PLAIN
from tools.table import Table


def write(runs: Runs, folder: Path, command: str) -> None:
    """
    Write ``results.md`` and the figures.

    :param runs: the runs.
    :param folder: where to.
    :param command: how the study was started.
    """
    radii = sorted(runs.settings["epsilons"])
    headline = radii[(len(radii) - 1) // 2]
    pictures = figures.draw(runs, headline, folder)
    columns = {
        "clean": "accuracy",
        **{f"ε = {radius:g}": f"attacked_{radius:g}" for radius in radii},
        **{f"{n} flips" if n > 1 else "1 flip": f"hotflip_{n}" for n in _counts(runs.settings["max_flips"])},
        **{f"{n} typos" if n > 1 else "1 typo": f"typos_{n}" for n in _counts(runs.settings["max_typos"])},
    }
    others = [method for method in runs.methods if method != PLAIN]
    parts = [
        "# Results",
        described(runs),
        f"```shell\n{command}\n```",
        "## Accuracy",
        "In %, mean ± standard deviation over seeds: of the clean test texts, and of what is left of those attacked. "
        "The cost is the time of a training step in plain steps: the median of rounds in which all methods took turns.",
        Table(
            ["method", "seeds", *columns, "cost"], [accuracies(runs, method, columns) for method in runs.methods]
        ).markdown(),
        "## Differences to plain training",
        "In percentage points, paired by seed: the mean, and its 95 % bootstrap interval over seeds. Where that holds "
        "0, these runs do not tell the method from plain training.",
        Table(["method", *columns], [differences(runs, method, columns) for method in others]).markdown(),
        "## Figures",
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures),
    ]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _counts(most: int) -> list[int]:
    return sorted({1, most}) if most else []


def described(runs: Runs) -> str:
    """What was trained, on what, and how it was attacked."""
    s = runs.settings
    versions = ", ".join(f"{name} {s[name]}" for name in VERSIONS)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"`{s['model']}` on {s['train_size']} texts of `{s['dataset']}`, {s['epochs']} epochs, batch size "
        f"{s['batch_size']}, learning rate {s['lr']:g}, at most {s['max_length']} tokens; methods are at their "
        f"defaults where no arguments stand behind them. Clean accuracy is over {s['test_size']} test texts, that "
        f"under attack over the first {s['attack_size']}. ε is the radius (l2, a text) of an attack on the word "
        f"vectors, in units of their mean norm: {s['attack_steps']} steps from each of {s['restarts']} starts. HotFlip "
        f"may swap {s['max_flips']} words, typos may be in {s['max_typos']}. {versions}; {platform.machine()}, "
        f"{os.cpu_count()} cores{gpu}."
    )


def accuracies(runs: Runs, method: str, columns: dict[str, str]) -> list[str]:
    """The row of a method in the first table."""
    found = [[100 * each for each in runs.values(method, column).values()] for column in columns.values()]
    cells = [mean_and_spread(each) for each in found]
    seconds, plain = (runs.step_seconds.get(name, []) for name in (method, PLAIN))
    cost = [f"{np.median(np.divide(seconds, plain)):.2f}" if plain else ""]
    return [method, str(len(found[0])), *cells, *cost]


def differences(runs: Runs, method: str, columns: dict[str, str]) -> list[str]:
    """The row of a method in the second table."""
    cells = []
    for column in columns.values():
        found = [100 * each for each in runs.differences(method, column)]
        mean = f"{np.mean(found):+.1f}" if found else ""
        cells.append(mean + (" ({:+.1f} to {:+.1f})".format(*interval(found)) if len(found) > 1 else ""))
    return [method, *cells]
