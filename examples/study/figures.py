"""
The figures of the study. Panels and markers tell the methods apart, so they can be read in black and white.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from study.runs import Runs, spread
from study.train import PLAIN

MARKERS = "os^Dv<>pP*Xdhx"
COLUMNS = 5
TITLE_WIDTH = 22  # letters that fit above a panel
DPI = 150
#: points of clean accuracy: who loses more than that has learned less than plain training, or nothing
LOSS = 3
#: how much a name loses where another point is as close, in typographic points that it could stand further off
UNCLEAR = 60
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
    cost = {method: [float(np.median(times))] for method, times in in_plain_steps(runs).items()}
    beside, price = of_clean(runs, clean, left), of_cost(runs, cost, left, headline)
    figures = {
        "accuracy_by_epsilon.png": by_epsilon(runs),
        "clean_and_robust.png": scatter(runs, clean, left, ("clean accuracy (%)", named), beside),
        "cost_and_robust.png": scatter(
            runs,
            cost,
            left,
            ("time of a training step, in plain steps", named),
            price,
            front(cost, left, [PLAIN, *sound(runs)]),
        ),
    }
    for name, figure in figures.items():
        for axes in figure.axes:
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name, dpi=DPI)
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


def scatter(
    runs: Runs,
    x: Values,
    y: Values,
    names: tuple[str, str],
    title: str,
    best: Sequence[tuple[float, float]] = (),
) -> Figure:
    """
    A point per method, with its name: the mean, with a standard deviation to each side. Plain training is black, and
    methods that lose more than :data:`LOSS` points of clean accuracy are hollow.

    :param runs: the runs.
    :param x: of each method.
    :param y: of each method.
    :param names: of the axes.
    :param title: of the figure.
    :param best: points to join by steps, see :func:`front`.
    :return: the figure.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    points = {}
    learned = {PLAIN, *sound(runs)}
    for place, method in enumerate(runs.methods):
        points[method] = float(np.mean(x[method])), float(np.mean(y[method]))
        color = "black" if method == PLAIN else "tab:blue"
        style = {"marker": MARKERS[place % len(MARKERS)], "color": color, "zorder": 3}
        style["markerfacecolor"] = color if method in learned else "white"
        errors = {"xerr": spread(x[method]), "yerr": spread(y[method]), "elinewidth": 0.7, "ecolor": "0.8"}
        axes.errorbar(*points[method], ls="none", ms=7, **errors, **style)
    if PLAIN in points:
        axes.axhline(points[PLAIN][1], color="black", lw=0.7, ls=":")
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.margins(x=0.08)
    if len(best) > 1:
        axes.step(
            *zip(*best, strict=True),
            where="post",
            color="tab:orange",
            lw=1,
            zorder=1,
            label="best at its cost or less",
        )
        axes.legend(loc="lower right", frameon=False)
    axes.set_title(textwrap.fill(title, 80), fontsize=11, loc="left")
    figure.draw_without_rendering()  # places the axes, which labels are placed by
    label(axes, points, best)
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


def label(axes: Axes, points: dict[str, tuple[float, float]], best: Sequence[tuple[float, float]] = ()) -> None:
    """
    Write each name beside its point: at the place, of some around it, that covers least of other names, points and
    steps. Those with the most points nearby choose first, and all choose again when the others are placed. A line
    leads to a name that is far from its point.

    :param axes: where to, laid out already.
    :param points: by name.
    :param best: points that are joined by steps.
    """
    pixels = axes.figure.dpi / 72
    centres = dict(zip(points, axes.transData.transform(list(points.values())), strict=True))
    marks = {name: Bbox.from_extents(*(at - 6 * pixels), *(at + 6 * pixels)) for name, at in centres.items()}
    nearby = {name: sum(np.abs(at - centres[name]).max() < 60 * pixels for at in centres.values()) for name in points}
    steps = _steps(axes, best, pixels)
    placed: dict[str, Bbox] = {}
    texts: dict[str, Annotation] = {}
    for name in sorted(points, key=nearby.__getitem__, reverse=True) * 2:
        if name in texts:
            texts.pop(name).remove()
        others = [box for other, box in placed.items() if other != name]
        tried = []
        for far in (8, 16, 28, 42):
            for angle in range(0, 360, 30):
                text = _name_at(axes, name, points[name], far, angle)
                box = text.get_window_extent()
                covered = sum(_overlap(box, other) for other in [*marks.values(), *others])
                crossed = sum(_overlap(box, step) for step in steps) / 4
                outside = box.width * box.height - _overlap(box, axes.bbox)
                unclear = UNCLEAR * any(
                    _distance(box, at) < 1.5 * _distance(box, centres[name])
                    for each, at in centres.items()
                    if each != name
                )
                tried.append((covered + crossed + outside + (unclear + 2 * far) * pixels, len(tried), text, box))
                text.remove()
        _, place, _, placed[name] = min(tried, key=lambda each: each[:2])
        texts[name] = tried[place][2]
        axes.add_artist(texts[name])


def _steps(axes: Axes, best: Sequence[tuple[float, float]], width: float) -> list[Bbox]:
    """The room that each line of the steps takes."""
    corners = [(x, y) for i, (x, _) in enumerate(best) for _, y in best[max(i - 1, 0) : i + 1]]
    at = axes.transData.transform(corners) if corners else []
    return [
        Bbox.from_extents(*(np.minimum(a, b) - 3 * width), *(np.maximum(a, b) + 3 * width))
        for a, b in itertools.pairwise(at)
    ]


def _name_at(axes: Axes, name: str, point: tuple[float, float], far: float, angle: float) -> Annotation:
    """Write a name so many typographic points from a point, in the direction of an angle."""
    dx, dy = float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))
    return axes.annotate(
        name,
        point,
        (far * dx, far * dy),
        textcoords="offset points",
        ha="left" if dx > 0.1 else "right" if dx < -0.1 else "center",
        va="bottom" if dy > 0.6 else "top" if dy < -0.6 else "center",
        fontsize=10,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],  # lines do not strike it through
        arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.7, "shrinkA": 0, "shrinkB": 4} if far > 20 else None,
    )


def _distance(box: Bbox, at: np.ndarray) -> float:
    return float(np.hypot(*np.maximum(0, np.maximum(box.min - at, at - box.max))))


def _overlap(box: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(box, other)
    return 0.0 if common is None else common.width * common.height


def table_of(runs: Runs, column: str, scale: float) -> Values:
    """What was measured of each method, for each seed."""
    return {method: [scale * each for each in runs.values(method, column).values()] for method in runs.methods}
