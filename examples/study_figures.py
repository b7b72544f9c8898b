"""
The figures of the study. Markers and line styles tell the methods apart, so they can be read in black and white.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from study_table import Table, spread
from study_train import PLAIN

MARKERS = "os^Dv<>pP*Xdhx"
LINES = ["-", "--", "-.", ":"]
Values = dict[str, list[float]]


def draw(table: Table, headline: float, folder: Path) -> list[Path]:
    """
    :param table: the runs.
    :param headline: the radius that stands for robustness where there is room for one only.
    :param folder: where to.
    :return: the files.
    """
    robust = f"attacked_{headline:g}"
    named = f"accuracy at ε = {headline:g} (%)"
    clean, left = table_of(table, "accuracy", 100), table_of(table, robust, 100)
    figures = {
        "accuracy_by_epsilon.png": lambda axes: by_epsilon(axes, table),
        "clean_and_robust.png": lambda axes: scatter(axes, table, clean, left, ("clean accuracy (%)", named)),
        "cost_and_robust.png": lambda axes: scatter(axes, table, table.step_seconds, left, ("seconds a step", named)),
    }
    for name, put in figures.items():
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        put(axes)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(folder / name, dpi=110)
        plt.close(figure)
    return [folder / name for name in figures]


def style(table: Table, method: str) -> dict:
    """Marker, line and grey or colour of a method; plain training in black, so that the eye can compare with it."""
    place = table.methods.index(method)
    colour = "black" if method == PLAIN else plt.get_cmap("viridis")(place / max(1, len(table.methods) - 1) * 0.85)
    return {"marker": MARKERS[place % len(MARKERS)], "color": colour, "label": method}


def by_epsilon(axes: Axes, table: Table) -> None:
    """Accuracy against the radius of the attack; the mean over seeds."""
    radii = [0.0, *sorted(table.settings["epsilons"])]
    for place, method in enumerate(table.methods):
        shares = [100 * np.mean(list(table.values(method, f"attacked_{radius:g}").values())) for radius in radii]
        width = 2.5 if method == PLAIN else 1.2
        axes.plot(radii, shares, ls=LINES[place % len(LINES)], lw=width, ms=5, **style(table, method))
    axes.set(
        xlabel="ε, in units of the mean norm of the word vectors", ylabel="accuracy under attack (%)", ylim=(0, None)
    )
    axes.set_title("Accuracy against the size of the perturbation (mean over seeds)", loc="left")


def scatter(axes: Axes, table: Table, x: Values, y: Values, names: tuple[str, str]) -> None:
    """A point a method: the mean, with a standard deviation to each side."""
    for method in table.methods:
        across, up = x[method], y[method]
        errors = {"xerr": spread(across), "yerr": spread(up), "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(np.mean(across), np.mean(up), ls="none", ms=7, **errors, **style(table, method))
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_title(f"{names[1].split(' (')[0]}, against {names[0].split(' (')[0]}".capitalize(), loc="left")


def table_of(table: Table, column: str, scale: float) -> Values:
    """What was measured of each method, for each seed."""
    return {method: [scale * each for each in table.values(method, column).values()] for method in table.methods}
