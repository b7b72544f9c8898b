"""
The figures of the study. Panels and markers tell the methods apart, so they can be read in black and white.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from study.runs import Runs, spread
from study.train import PLAIN

MARKERS = "os^Dv<>pP*Xdhx"
COLUMNS = 5
TITLE_WIDTH = 22  # letters that fit above a panel
#: points of clean accuracy: who loses more than that has learned less than plain training, or nothing
LOSS = 3
Values = dict[str, list[float]]


def draw(runs: Runs, headline: float, folder: Path) -> list[Path]:
    """
    :param runs: the runs.
    :param headline: the radius that stands for robustness where there is room for one only.
    :param folder: where to.
    :return: the files.
    """
    named = f"accuracy under attack at ε = {headline:g} (%)"
    clean, left = table_of(runs, "accuracy", 100), table_of(runs, f"attacked_{headline:g}", 100)
    cost = in_plain_steps(runs)
    beside, price = of_clean(runs, clean, left), of_cost(runs, cost, left, headline)
    figures = {
        "accuracy_by_epsilon.png": by_epsilon(runs),
        "clean_and_robust.png": scatter(runs, clean, left, ("clean accuracy (%)", named), beside),
        "cost_and_robust.png": scatter(runs, cost, left, ("time of a training step, in plain steps", named), price),
    }
    draw_front(figures["cost_and_robust.png"].axes[0], front(cost, left, [PLAIN, *sound(runs)]))
    for name, figure in figures.items():
        for axes in figure.axes:
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)
    return [folder / name for name in figures]


def in_plain_steps(runs: Runs) -> Values:
    """What a step of each method takes, in each round, as a multiple of a plain step of the same round."""
    plain = runs.step_seconds.get(PLAIN)
    return {m: list(np.divide(runs.step_seconds[m], plain or runs.step_seconds[m])) for m in runs.methods}


def sound(runs: Runs) -> list[str]:
    """The methods that have learned: a model that has not is never fooled, and would lead every comparison."""
    clean = table_of(runs, "accuracy", 100)
    least = np.mean(clean[PLAIN]) - LOSS if PLAIN in clean else 0.0
    return [method for method in runs.methods if method != PLAIN and np.mean(clean[method]) >= least]


def of_clean(runs: Runs, clean: Values, left: Values) -> str:
    """Say how many methods lie above plain training, and how many of them to its right as well."""
    others = sound(runs)
    if PLAIN not in clean or not others:
        return "Robust against clean accuracy"
    above = [method for method in others if np.mean(left[method]) > np.mean(left[PLAIN])]
    right = [method for method in above if np.mean(clean[method]) >= np.mean(clean[PLAIN])]
    return (
        f"{len(above)} of {len(others)} keep more than plain training under attack, "
        f"{len(right)} of them at no loss of clean accuracy{_left_out(runs)}"
    )


def of_cost(runs: Runs, cost: Values, left: Values, headline: float) -> str:
    """Say which method keeps the most, and at which cost."""
    best = max(sound(runs) or runs.methods, key=lambda method: np.mean(left[method]))
    return (
        f"{best[0].upper()}{best[1:]} keeps the most at ε = {headline:g}, {np.mean(left[best]):.0f} %, "
        f"for {np.median(cost[best]):.1f} plain steps{_left_out(runs)}"
    )


def _left_out(runs: Runs) -> str:
    count = len(runs.methods) - (PLAIN in runs.methods) - len(sound(runs))
    return f" (without {count} that lose more than {LOSS} points of clean accuracy)" if count else ""


def by_epsilon(runs: Runs) -> Figure:
    """Accuracy against the radius of the attack, the mean over seeds: each method beside plain training."""
    radii = [0.0, *sorted(runs.settings["epsilons"])]
    means = {
        method: [100 * np.mean(list(runs.values(method, f"attacked_{radius:g}").values())) for radius in radii]
        for method in runs.methods
    }
    others = [method for method in runs.methods if method != PLAIN]
    columns = min(COLUMNS, max(1, len(others)))
    rows = max(1, -(-len(others) // columns))
    size = {"figsize": (max(7, 2 * columns), 2 * rows + 0.8), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, **size)
    for axes, method in zip(grid.flat, others, strict=False):
        for place, other in enumerate(others):
            axes.plot(radii, means[other], color="0.85", lw=1, label="" if place else "others")
        if PLAIN in means:
            axes.plot(radii, means[PLAIN], "k:o", ms=4, markerfacecolor="white", label=PLAIN)
        axes.plot(radii, means[method], "-s", color="tab:blue", ms=4, label="this method")
        axes.set_title(textwrap.fill(method, TITLE_WIDTH), fontsize=10)
        axes.set(ylim=(0, None), xticks=radii)
    for axes in grid.flat[len(others) :]:
        axes.set_visible(False)
    for axes in grid.flat[: len(others)][-columns:]:
        axes.tick_params(labelbottom=True)  # the last of each column
    figure.supxlabel("ε, in units of the mean norm of the word vectors", fontsize=10)
    figure.supylabel("accuracy under attack (%)", fontsize=10)
    figure.suptitle(textwrap.fill(most_robust(runs, means), 100))
    if others:
        grid.flat[0].legend(fontsize=7, frameon=False)
    return figure


def most_robust(runs: Runs, means: Values) -> str:
    """Say how many methods are above plain training, wherever an attack has a radius."""
    others = sound(runs)
    if PLAIN not in means:
        return "Accuracy under attacks of growing radius"
    above = [m for m in others if all(own > plain for own, plain in zip(means[m][1:], means[PLAIN][1:], strict=True))]
    return (
        f"{len(above)} of {len(others)} methods keep more than plain training under attack, whatever its radius"
        f"{_left_out(runs)}"
    )


def scatter(runs: Runs, x: Values, y: Values, names: tuple[str, str], title: str) -> Figure:
    """A point per method, with its name: the mean, with a standard deviation to each side. Plain training is black."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    points = {}
    for place, method in enumerate(runs.methods):
        points[method] = float(np.mean(x[method])), float(np.mean(y[method]))
        style = {"marker": MARKERS[place % len(MARKERS)], "color": "black" if method == PLAIN else "tab:blue"}
        errors = {"xerr": spread(x[method]), "yerr": spread(y[method]), "elinewidth": 0.7, "ecolor": "0.75"}
        axes.errorbar(*points[method], ls="none", ms=7, **errors, **style)
    if PLAIN in points:
        axes.axhline(points[PLAIN][1], color="black", lw=0.7, ls=":")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(textwrap.fill(title, 90), fontsize=11, loc="left")
    figure.draw_without_rendering()  # places the axes, which labels are placed by
    label(axes, points)
    return figure


def front(cost: Values, left: Values, methods: list[str]) -> list[tuple[float, float]]:
    """
    :param cost: of each method.
    :param left: what each keeps.
    :param methods: those that count.
    :return: the means of those that no other surpasses at the same or a lower cost, by rising cost.

    Example::

        >>> front({"plain": [1], "FGM": [2], "PGD": [4]}, {"plain": [20], "FGM": [30], "PGD": [25]}, ["FGM", "plain"])
        [(1.0, 20.0), (2.0, 30.0)]
    """
    points = sorted((float(np.mean(cost[each])), -float(np.mean(left[each]))) for each in methods if each in cost)
    lowest = np.minimum.accumulate([kept for _, kept in points])
    return [(x, -y) for i, (x, y) in enumerate(points) if not i or y < lowest[i - 1]]


def draw_front(axes: Axes, points: list[tuple[float, float]]) -> None:
    """Join the best that can be had at each cost, as steps."""
    if len(points) > 1:
        axes.step(
            *zip(*points, strict=True),
            where="post",
            color="tab:orange",
            lw=1,
            zorder=0,
            label="best at its cost or less",
        )
        axes.legend(loc="lower right", frameon=False)


def label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """
    Write each name beside its point: at the place, of some around it, that covers least of other names and points.

    :param axes: where to, laid out already.
    :param points: by name.
    """
    centres = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_extents(cx - 6, cy - 6, cx + 6, cy + 6) for cx, cy in centres]
    for name, point in points.items():
        tried = []
        for far in (8, 16, 26):
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
                text = axes.annotate(
                    name,
                    point,
                    (far * dx, far * dy),
                    textcoords="offset points",
                    ha=("right", "center", "left")[dx + 1],
                    va=("top", "center", "bottom")[dy + 1],
                    fontsize=9,
                )
                box = text.get_window_extent()
                covered = sum(_overlap(box, other) for other in taken)
                inside = _overlap(box, axes.bbox)
                tried.append((covered + box.width * box.height - inside + far, len(tried), text, box))
        tried.sort(key=lambda each: each[:2])
        taken.append(tried[0][3])
        for _, _, text, _ in tried[1:]:
            text.remove()


def _overlap(box: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(box, other)
    return 0.0 if common is None else common.width * common.height


def table_of(runs: Runs, column: str, scale: float) -> Values:
    """What was measured of each method, for each seed."""
    return {method: [scale * each for each in runs.values(method, column).values()] for method in runs.methods}
