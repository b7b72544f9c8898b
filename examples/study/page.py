"""
The results of the study as a page in English and in Chinese: what was run, what came out, and how sure that is.
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
from study.words import CHINESE, ENGLISH
from tools.table import Table


def write(runs: Runs, folder: Path, command: str) -> None:
    """
    Write the page in both languages, and the figures.

    :param runs: the runs.
    :param folder: where to.
    :param command: how the study was started.
    """
    radii = sorted(runs.settings["epsilons"])
    headline = radii[0]
    pictures = figures.draw(runs, headline, folder)
    for words in (ENGLISH, CHINESE):
        (folder / words["file"]).write_text(_page(runs, command, pictures, words), encoding="utf-8")


def _page(runs: Runs, command: str, pictures: list[Path], words: dict) -> str:
    columns = _columns(runs.settings, words)
    method, seeds, cost = words["columns"]
    rows = [accuracies(runs, name, columns) for name in runs.methods]
    parts = [
        words["title"],
        words["other"],
        _described(runs, words),
        f"```shell\n{command}\n```",
        words["values"],
        Table([method, seeds, *columns, cost], rows).markdown(),
        *(part for base in words["bases"] for part in _compared(runs, base, columns, words)),
        words["figures"],
        *(f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _columns(settings: dict, words: dict) -> dict[str, str]:
    """What was measured, by the head of its column."""
    most = {"hotflip": settings["max_flips"], "typos": settings["max_typos"]}
    return {
        words["clean"]: "accuracy",
        **{f"ε = {radius:g}": f"attacked_{radius:g}" for radius in sorted(settings["epsilons"])},
        **{
            words[attack].format(n=n, s="s" if n > 1 else ""): f"{attack}_{n}"
            for attack in most
            for n in sorted({1, most[attack]})
            if most[attack]
        },
    }


def _described(runs: Runs, words: dict) -> str:
    """What was trained, on what, and how it was attacked."""
    return words["described"].format(
        **runs.settings,
        versions=", ".join(f"{name} {runs.settings[name]}" for name in VERSIONS),
        machine=platform.machine(),
        cores=os.cpu_count(),
        gpu=f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "",
    )


def accuracies(runs: Runs, method: str, columns: dict[str, str]) -> list[str]:
    """The row of a method in the first table."""
    found = [[100 * each for each in runs.values(method, column).values()] for column in columns.values()]
    cells = [mean_and_spread(each) for each in found]
    seconds, plain = (runs.step_seconds.get(name, []) for name in (method, PLAIN))
    cost = [f"{np.median(np.divide(seconds, plain)):.2f}" if plain else ""]
    return [method, str(len(found[0])), *cells, *cost]


def _compared(runs: Runs, base: str, columns: dict[str, str], words: dict) -> list[str]:
    """The part of the page that sets the methods beside one of them, if that was run."""
    others = [method for method in runs.methods if method not in (base, PLAIN)]
    if base not in runs.methods or not others:
        return []
    known = all(outcome_file(runs.folder, *each).is_file() for each in runs.rows)
    sure = words["over texts" if known else "over seeds"]
    rows = [differences(runs, method, columns, base, words) for method in others]
    return [
        words["differences"].format(base=words["bases"][base], **sure),
        Table([words["columns"][0], *columns], rows).markdown(),
    ]


def differences(
    runs: Runs, method: str, columns: dict[str, str], base: str = PLAIN, words: dict = ENGLISH
) -> list[str]:
    """The row of a method in such a part."""
    cells = []
    for column in columns.values():
        count = len(runs.differences(method, column, base))
        mean, low, high = difference(runs, base, method, column) if count else (0.0, 0.0, 0.0)
        sure = " " + words["interval"].format(low=low, high=high) if count > 1 else ""
        cells.append((f"{mean:+.1f}" if count else "") + sure)
    return [method, *cells]
