"""
The results of the Chinese study as a page in English and in Chinese: what was run, what came out, how sure that is, and
what so many texts cannot tell apart.
"""

from __future__ import annotations

import os
import platform

import numpy as np
from study.outcomes import difference
from study.runs import VERSIONS, Runs, interval, mean_and_spread
from study.train import PLAIN, WHOLE

from study_chinese.attack import SLIPS
from study_chinese.words import CHINESE, ENGLISH
from tools.table import Table


def write(runs: Runs, task, command: str) -> None:
    """
    Write the page in both languages.

    :param runs: the runs; it knows the folder.
    :param task: what was trained.
    :param command: how the study was started.
    """
    for words in (ENGLISH, CHINESE):
        (runs.folder / words["file"]).write_text(_page(runs, task, command, words), encoding="utf-8")


def _page(runs: Runs, task, command: str, words: dict) -> str:
    settings = runs.settings
    unit, metric = words["unit"][task.unit], words["metric"][task.metric]
    attacked = [f"{slip}_{n}" for slip in SLIPS for n in range(1, settings["edits"] + 1)]
    columns = ["clean", "attacked_0", *attacked]
    method, seeds, clean, none, cost = words["columns"]
    heads = [clean, none, *(words["edits"][name.split("_")[0]].format(n=name[-1]) for name in attacked)]
    others = [name for name in runs.methods if name != PLAIN and runs.differences(name, "clean")]
    found = _differences(runs, PLAIN, others, columns)
    filled = {
        **settings,
        "model": words["model"][settings["task"]].format(**settings),
        "metric": metric,
        "attacked": len(task.texts),
        "versions": ", ".join(f"{name} {settings[name]}" for name in VERSIONS[:2]),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    parts = [
        words["title"][settings["task"]],
        words["other"],
        words["described"].format(**filled),
        f"```shell\n{command}\n```",
        words["values"].format(metric=metric),
        Table([method, seeds, *heads, cost], [_values(runs, name, columns) for name in runs.methods]).markdown(),
    ]
    untried = max((row["not_attacked"] for row in runs.rows.values()), default=0)
    if untried:
        parts.append(words["untried"].format(count=untried, unit=unit))
    if found:
        parts += _shown(found, PLAIN, [method, *heads], unit, words)
        parts += [_verdict(found, columns, heads, words, sign) for sign in (1, -1)]
        widths = [(high - low) / 2 for cells in found.values() for _, low, high in (cells[name] for name in attacked)]
        alone = [
            (high - low) / 2
            for name in others
            for low, high in (interval([100 * each for each in runs.differences(name, column)]) for column in attacked)
        ]
        sizes = {"half": np.median(widths), "most": max(widths), "seeds": np.median(alone)}
        intervals = len(others) * len(columns)
        sizes.update(comparisons=intervals, chance=0.05 * intervals)
        parts.append(words["able"].format(count=len(task.texts), unit=unit, **sizes))
    cheaper = [name for name in others if name != WHOLE]
    if WHOLE in others and cheaper:
        parts += _shown(_differences(runs, WHOLE, cheaper, columns), WHOLE, [method, *heads], unit, words)
    return "\n\n".join(parts) + "\n"


def _differences(runs: Runs, base: str, methods: list[str], columns: list[str]) -> dict:
    return {name: {column: difference(runs, base, name, column) for column in columns} for name in methods}


def _shown(found: dict, base: str, heads: list[str], unit: str, words: dict) -> list[str]:
    """What the page says of differences: a heading and a table."""
    rows = [[name, *map(_cell, cells.values())] for name, cells in found.items()]
    return [words["differences"].format(unit=unit, base=words["bases"][base]), Table(heads, rows).markdown()]


def _values(runs: Runs, method: str, columns: list[str]) -> list[str]:
    """The row of a method in the first table."""
    found = [[100 * each for each in runs.values(method, column).values()] for column in columns]
    cells = [mean_and_spread(each) for each in found]
    # Of the whole training: the median step of a method that acts in every fourth is a plain one.
    seconds, plain = (list(runs.values(name, "train_seconds").values()) for name in (method, PLAIN))
    cost = f"{np.median(seconds) / np.median(plain):.2f}" if plain else ""
    return [method, str(len(found[0])), *cells, cost]


def _cell(found: tuple[float, float, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*found).replace(" to ", " – ")


def _verdict(found: dict, columns: list[str], heads: list[str], words: dict, sign: int) -> str:
    """Which methods are apart from plain training to one side, and where."""
    named = []
    for name, cells in found.items():
        where = [
            head
            for column, head in zip(columns, heads, strict=True)
            if (cells[column][1] > 0 if sign > 0 else cells[column][2] < 0)
        ]
        if where:
            named.append(f"{name} ({', '.join(where)})")
    return words["helps" if sign > 0 else "hurts"].format(names="; ".join(named) or words["none"])
