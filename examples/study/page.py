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
from study.outcomes import difference, outcome_file
from study.runs import VERSIONS, Runs, mean_and_spread
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
        *compared(runs, PLAIN, "plain training", columns),
        *compared(runs, "FGM", "FGM", columns),
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


def compared(runs: Runs, base: str, named: str, columns: dict[str, str]) -> list[str]:
    """The part of the page that sets the methods beside one of them, if that was run."""
    rows = [differences(runs, method, columns, base) for method in runs.methods if method not in (base, PLAIN)]
    if base not in runs.methods or not rows:
        return []
    known = all(outcome_file(runs.folder, *each).is_file() for each in runs.rows)
    over = "seeds and texts together (clean: over seeds alone)" if known else "seeds"
    return [
        f"## Differences to {named}",
        f"In percentage points, paired by seed{' and text' if known else ''}: the mean, and its 95 % bootstrap "
        f"interval over {over}. Where that holds 0, these runs do not tell the method from {named}.",
        Table(["method", *columns], rows).markdown(),
    ]


def differences(runs: Runs, method: str, columns: dict[str, str], base: str = PLAIN) -> list[str]:
    """The row of a method in such a part."""
    cells = []
    for column in columns.values():
        count = len(runs.differences(method, column, base))
        mean, low, high = difference(runs, base, method, column) if count else (0.0, 0.0, 0.0)
        cells.append((f"{mean:+.1f}" if count else "") + (f" ({low:+.1f} to {high:+.1f})" if count > 1 else ""))
    return [method, *cells]
