"""
The figures of the study. Panels and markers tell the methods apart, so they can be read in black and white.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Dict, List

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from study.runs import Runs, spread
from study.train import PLAIN

MARKERS = "os^Dv<>pP*Xdhx"
COLUMNS = 5
TITLE_WIDTH = 22  # letters that fit above a panel
Values = Dict[str, List[float]]


def draw(runs: Runs, headline: float, folder: Path) -> list[Path]:
    """
    :param runs: the runs.
    :param headline: the radius that stands for robustness where there is room for one only.
    :param folder: where to.
    :return: the files.
    """
    named = f"accuracy at ε = {headline:g} (%)"
    clean, left = table_of(runs, "accuracy", 100), table_of(runs, f"attacked_{headline:g}", 100)
    figures = {
        "accuracy_by_epsilon.png": by_epsilon(runs),
        "clean_and_robust.png": scatter(runs, clean, left, ("clean accuracy (%)", named)),
        "cost_and_robust.png": scatter(runs, runs.step_seconds, left, ("seconds a step", named)),
    }
    for name, figure in figures.items():
        for axes in figure.axes:
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)
    return [folder / name for name in figures]


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
    for axes, method in zip(grid.flat, others):
        for other in others:
            axes.plot(radii, means[other], color="0.85", lw=1)
        if PLAIN in means:
            axes.plot(radii, means[PLAIN], "k:o", ms=4, markerfacecolor="white")
        axes.plot(radii, means[method], "k-s", ms=4)
        axes.set_title(textwrap.fill(method, TITLE_WIDTH), fontsize=10)
        axes.set(ylim=(0, None), xticks=radii)
    for axes in grid.flat[len(others) :]:
        axes.set_visible(False)
    for axes in grid.flat[: len(others)][-columns:]:
        axes.tick_params(labelbottom=True)  # the last of each column
    figure.supxlabel("ε, in units of the mean norm of the word vectors", fontsize=10)
    figure.supylabel("accuracy under attack (%)", fontsize=10)
    figure.suptitle("Each method (squares) beside plain training (circles, dotted) and the others (grey)")
    return figure


def scatter(runs: Runs, x: Values, y: Values, names: tuple[str, str]) -> Figure:
    """A point a method: the mean, with a standard deviation to each side."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for place, method in enumerate(runs.methods):
        # Plain training in black, so that the eye can compare with it.
        shade = plt.get_cmap("viridis")(place / max(1, len(runs.methods) - 1) * 0.85)
        style = {
            "marker": MARKERS[place % len(MARKERS)],
            "color": "black" if method == PLAIN else shade,
            "label": method,
        }
        errors = {"xerr": spread(x[method]), "yerr": spread(y[method]), "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(np.mean(x[method]), np.mean(y[method]), ls="none", ms=7, **errors, **style)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{names[1].split(' (')[0]}, against {names[0].split(' (')[0]}".capitalize(), loc="left")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def table_of(runs: Runs, column: str, scale: float) -> Values:
    """What was measured of each method, for each seed."""
    return {method: [scale * each for each in runs.values(method, column).values()] for method in runs.methods}
