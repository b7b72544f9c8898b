"""
The page of a study: its settings, results and intervals, and the smallest difference that it resolves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from studies import figures
from studies.methods import PLAIN, WHOLE
from studies.runs import VERSIONS, Runs, interval, mean_and_spread
from studies.tasks import TASKS, Task, TimedTask
from tools.table import Table

BASES = {PLAIN: "plain training", WHOLE: "FGM"}
#: the limits of "keeps the robustness" and "cheap", in points and in plain steps
POINT, CHEAP = 1.0, 1.25
#: radii of the answer at most
LARGEST = 0.2
Differences = dict[str, dict[str, tuple[float, float, float]]]


def write(runs: Runs) -> None:
    """Write the page and the figures into the folder of the runs."""
    pictures = figures.draw(runs, TASKS[runs.about["task"]])
    (runs.folder / "results.md").write_text(page(runs, pictures), encoding="utf-8")


def page(runs: Runs, pictures: Sequence[str]) -> str:
    """Compose the page."""
    task = TASKS[runs.about["task"]]
    parts = [f"# {task.title}", _described(runs, task), f"```shell\n{runs.about['command']}\n```", _key(runs, task)]
    models = [model for model in task.models if any(key[0] == model for key in runs.rows)]
    for model in models:
        if model:
            parts.append(f"## {task.models[model]}")
        parts += _of_model(runs.of(model), task, "###" if model else "##")
    if pictures:
        parts += ["## Figures", *(f"![{name[:-4].replace('_', ' ')}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def _described(runs: Runs, task: type[Task]) -> str:
    versions = Counter(row["version"] for row in runs.rows.values())
    trained = ", ".join(f"{name or 'not recorded'} ({count} runs)" for name, count in versions.items())
    others = ", ".join(f"{name} {runs.settings[name]}" for name in VERSIONS)
    return f"{task.described(runs.settings)} fastnlp_adv {trained}; {others}; {runs.about['machine']}."


def _key(runs: Runs, task: type[Task]) -> str:
    """Say how to read the tables."""
    cost = "The cost is the time of a step in plain steps: the median of rounds in which methods took turns. "
    cost *= issubclass(task, TimedTask)
    least = "0" if task.metric == "F1" else "the share of the most frequent label"
    over = ", over seeds only for clean texts" if runs.over_texts() else ""
    drawn = f"seeds and {task.unit} together" if runs.over_texts() else "seeds, and texts where they are recorded"
    return (
        "A row has the name of its call: `FGM fraction=0.25 replace=True` is `FGMCallback(fraction=0.25, "
        "replace=True)`, and arguments that are not named have their defaults. Accuracies are in %, mean ± standard "
        f"deviation over seeds. *Learned* counts the seeds with a clean {task.metric} above {least} by more than "
        "0.82/√n for n test texts, a one-sided test at 5 %: a model that always predicts one class is never fooled, so "
        f"its robust accuracy has no meaning. {cost}Differences are in percentage points, paired by "
        f"seed: the mean, and its 95 % bootstrap interval over {drawn}{over}; where it holds 0, these runs do not "
        "tell the two methods apart."
    )


def _of_model(runs: Runs, task: type[Task], level: str) -> list[str]:
    columns = task.columns(runs.settings)
    heads = [*columns.values()]
    first = ["method", "seeds", "learned", *heads, *(["cost"] if any(map(runs.cost, runs.methods)) else [])]
    rows = [values(runs, method, columns)[: len(first)] for method in runs.methods]
    parts = [f"{level} {task.metric[0].upper()}{task.metric[1:]}", Table(first, rows).markdown()]
    attacked = [name for name in columns if name not in ("clean", "attacked_0")]
    tried = [found[attacked[0]] for found in runs.outcomes.values()]
    if untried := max((counts.count(None) for counts in tried), default=0):
        parts.append(f"No edit could be tried on {untried} of the {task.unit}; they do not count.")
    learned = [method for method in runs.methods if runs.learned(method)]
    if not learned:
        return [*parts, "No method learned anything, so there is nothing to compare."]
    if nothing := [method for method in runs.methods if method not in learned]:
        parts.append(f"Methods that did not learn with any seed, and are not compared below: {', '.join(nothing)}.")
    for base, told in BASES.items():
        found = differences(runs, base, [m for m in learned if m not in (base, PLAIN)], columns)
        if base not in learned or not found:
            continue
        rows = [[method, *(cell(runs, method, each) for each in cells.values())] for method, cells in found.items()]
        parts += [f"{level} Differences to {told}", Table(["method", *heads], rows).markdown()]
        if base == PLAIN:
            parts += [_verdict(found, columns, sign) for sign in (1, -1)]
            parts += _sensitivity(runs, task, found, attacked, level)
    if answers := [_answer(runs, method, columns) for method in runs.methods if _asked(runs, method)]:
        parts += [f"{level} Does a quarter of the batch keep FGM's robustness?", _QUESTION, "\n".join(answers)]
    return parts


def values(runs: Runs, method: str, columns: dict[str, str]) -> list[str]:
    """Return the row of a method in the first table."""
    cells = [mean_and_spread([100 * each for each in runs.values(method, column).values()]) for column in columns]
    seeds, cost = len(runs.values(method, "clean")), runs.cost(method)
    return [method, f"{seeds}", f"{runs.learned(method)}", *cells, f"{np.median(cost):.2f}" if cost else ""]


def differences(runs: Runs, base: str, methods: list[str], columns: dict[str, str]) -> Differences:
    """Compare methods with one of them, if they have a seed in common."""
    found = {method: {column: runs.difference(base, method, column) for column in columns} for method in methods}
    return {method: cells for method, cells in found.items() if all(cells.values())}


def cell(runs: Runs, method: str, difference: tuple[float, float, float]) -> str:
    """Write a difference; one seed has no interval."""
    several = len(runs.values(method, "clean")) > 1
    return ("{:+.1f} ({:+.1f} to {:+.1f})" if several else "{:+.1f}").format(*difference)


def _verdict(found: Differences, columns: dict[str, str], sign: int) -> str:
    """Name the methods that are apart from plain training to one side, and where."""
    named = []
    for name, cells in found.items():
        where = [head for column, head in columns.items() if min(sign * each for each in cells[column][1:]) > 0]
        named += [f"{name} ({', '.join(where)})"] if where else []
    side = "Better" if sign > 0 else "Worse"
    return f"{side} than plain training, beyond the interval: {'; '.join(named) or 'none'}."


def _sensitivity(runs: Runs, task: type[Task], found: Differences, attacked: list[str], level: str) -> list[str]:
    """Say which differences so many texts and seeds can show."""
    if not runs.over_texts():
        return []
    count = len(next(iter(runs.outcomes.values()))[attacked[0]])
    widths = [(cells[column][2] - cells[column][1]) / 2 for cells in found.values() for column in attacked]
    over_seeds = []
    for method in found:
        for column in attacked:
            own, plain = runs.values(method, column), runs.values(PLAIN, column)
            low, high = interval([100 * (own[seed] - plain[seed]) for seed in sorted(own.keys() & plain.keys())])
            over_seeds.append((high - low) / 2)
    intervals = len(found) * len(next(iter(found.values())))
    return [
        f"{level} Resolution of {count} {task.unit}",
        f"Under attack the intervals above are ±{np.median(widths):.1f} points in the median, ±{max(widths):.1f} at "
        f"most: smaller differences cannot be seen with so many {task.unit} and seeds. Over seeds only, for exactly "
        f"these {task.unit}, the median is ±{np.median(over_seeds):.1f}: the rest is the choice of {task.unit}. With "
        f"{intervals} intervals, about {0.05 * intervals:.0f} would leave out 0 by chance if nothing helped.",
    ]


_QUESTION = (
    'Does a quarter of each batch (`fraction=0.25`), with `warmup="auto"` or from the first step, keep the robustness '
    f"of FGM within a point, at no less clean accuracy than plain training, for at most {CHEAP} plain steps? *Yes* "
    f"asks for intervals above -1 in each column under attack (radii up to {LARGEST}), for a mean clean accuracy not "
    "below plain training, and for this cost. *No* is an interval below -1, a clean accuracy below plain training "
    "beyond the interval, or a higher cost. All else is open."
)


def _asked(runs: Runs, method: str) -> bool:
    """Tell whether the question is about this method."""
    compared = all(base in runs.methods and runs.learned(base) for base in BASES)
    return compared and method.startswith(WHOLE) and "fraction=0.25" in method and not re.search(r"\+|warmup=1", method)


def _answer(runs: Runs, method: str, columns: dict[str, str]) -> str:
    """Answer the question for a method, in a sentence for each condition."""
    radius = {name: float(name.split("_")[1]) for name in columns if name.startswith("attacked_")}
    judged = [name for name in columns if name != "clean" and 0 < radius.get(name, LARGEST) <= LARGEST]
    found = differences(runs, WHOLE, [method], {name: columns[name] for name in judged})
    against_plain = runs.difference(PLAIN, method, "clean")
    if not found or against_plain is None:
        return f"- `{method}`: no seed in common with FGM and plain training."
    sorted_in: dict[str, list[str]] = {"within a point": [], "not decided": [], "more than a point below": []}
    for name, (mean, low, high) in found[method].items():
        kind = "within a point" if low >= -POINT else "more than a point below" if high < -POINT else "not decided"
        sorted_in[kind].append(f"{columns[name]} ({mean:+.1f}, {low:+.1f} to {high:+.1f})")
    mean, low, high = against_plain
    cost = round(float(np.median(runs.cost(method))), 2) if runs.cost(method) else None
    no = {"robustness": sorted_in["more than a point below"], "clean accuracy": high < 0, "cost": (cost or 0) > CHEAP}
    unsure = {"robustness": sorted_in["not decided"], "clean accuracy": mean < 0, "cost": cost is None}
    failed, unsure = ([part for part, holds in each.items() if holds] for each in (no, unsure))
    verdict = f"no, for {', '.join(failed)}" if failed else f"open, for {', '.join(unsure)}" if unsure else "yes"
    told = "; ".join(f"{kind}: {', '.join(each)}" for kind, each in sorted_in.items() if each)
    seeds = len(runs.values(method, "clean"))
    return (
        f"- `{method}`, {seeds} seed{'s' * (seeds > 1)}: **{verdict}**. Against FGM, "
        f"{told}. Clean accuracy against plain training: {mean:+.1f} ({low:+.1f} to {high:+.1f}). Cost: "
        f"{'not measured' if cost is None else f'{cost:.2f} plain steps'}."
    )
