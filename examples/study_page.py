"""
The results of the study as a page: what was run, what came out, and how sure that is.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import study_figures
import torch
from study_table import VERSIONS, Table, interval, spread
from study_train import PLAIN


def write(table: Table, folder: Path, command: str) -> None:
    """
    Write ``results.md`` and the figures.

    :param table: the runs.
    :param folder: where to.
    :param command: how the study was started.
    """
    radii = sorted(table.settings["epsilons"])
    headline = radii[(len(radii) - 1) // 2]
    pictures = study_figures.draw(table, headline, folder)
    columns = {
        "clean": "accuracy",
        **{f"ε = {radius:g}": f"attacked_{radius:g}" for radius in radii},
        **{f"{n} flips" if n > 1 else "1 flip": f"hotflip_{n}" for n in sorted({1, table.settings["max_flips"]})},
        **{f"{n} typos" if n > 1 else "1 typo": f"typos_{n}" for n in sorted({1, table.settings["max_typos"]})},
    }
    others = [method for method in table.methods if method != PLAIN]
    parts = [
        "# Results",
        described(table),
        f"```shell\n{command}\n```",
        "## Accuracy",
        "In %, mean ± standard deviation over seeds: of the clean test texts, and of what is left of those attacked. "
        "The cost is the time of a training step in plain steps: the median of rounds in which all methods took turns.",
        markdown(
            ["method", "seeds", *columns, "cost"], [accuracies(table, method, columns) for method in table.methods]
        ),
        "## Differences to plain training",
        "In percentage points, paired by seed: the mean, and its 95 % bootstrap interval over seeds. Where that holds "
        "0, these runs do not tell the method from plain training.",
        markdown(["method", *columns], [differences(table, method, columns) for method in others]),
        "## Figures",
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures),
    ]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def described(table: Table) -> str:
    """What was trained, on what, and how it was attacked."""
    s = table.settings
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


def accuracies(table: Table, method: str, columns: dict[str, str]) -> list[str]:
    """The row of a method in the first table."""
    found = [[100 * each for each in table.values(method, column).values()] for column in columns.values()]
    cells = [f"{np.mean(each):.1f}" + (f" ± {spread(each):.1f}" if len(each) > 1 else "") for each in found]
    seconds, plain = (table.step_seconds.get(name, []) for name in (method, PLAIN))
    cost = [f"{np.median(np.divide(seconds, plain)):.2f}" if plain else ""]
    return [method, str(len(found[0])), *cells, *cost]


def differences(table: Table, method: str, columns: dict[str, str]) -> list[str]:
    """The row of a method in the second table."""
    cells = []
    for column in columns.values():
        found = [100 * each for each in table.differences(method, column)]
        mean = f"{np.mean(found):+.1f}" if found else ""
        cells.append(mean + (" ({:+.1f} to {:+.1f})".format(*interval(found)) if len(found) > 1 else ""))
    return [method, *cells]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, the first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
