"""
The figures of a study. Panels and markers tell the methods apart, so they can be read in black and white.
"""

from __future__ import annotations

import itertools
import statistics
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from studies.methods import PLAIN
from studies.runs import Runs, spread
from studies.tasks import Task

LEAST_SEEDS = 3  # of most methods: fewer draw chance
MARKERS = "os^Dv<>pP*Xdhx"
COLUMNS = 5
TITLE_WIDTH = 22  # letters that fit above a panel
DPI = 150
#: points of clean accuracy: who loses more than that has learned less than plain training, or nothing
LOSS = 3
#: how much a name loses where another point is as close, in typographic points that it could stand further off
UNCLEAR = 60
Values = dict[str, list[float]]
Point = tuple[float, float]


def draw(runs: Runs, task: type[Task]) -> list[str]:
    """
    :param runs: the runs; it knows the folder.
    :param task: what was trained.
    :return: the names of the figures; none for a task without a headline, or with too few seeds.
    """
    headline = task.headline(runs.settings)
    seeds = [len(runs.values(method, "clean")) for method in runs.methods]
    if headline is None or statistics.median(seeds) < LEAST_SEEDS:
        return []
    drawn = {"accuracy_by_epsilon.png": by_epsilon(runs)} if "epsilons" in runs.settings else {}
    drawn["cost_and_robust.png"] = cost_and_robust(runs, headline, task.columns(runs.settings)[headline])
    for name, figure in drawn.items():
        for axes in figure.axes:
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(runs.folder / name, dpi=DPI)
        plt.close(figure)
    return [*drawn]


def percents(runs: Runs, column: str) -> Values:
    """Return what was measured of each method, for each seed, in %."""
    return {method: [100 * each for each in runs.values(method, column).values()] for method in runs.methods}


def sound(runs: Runs) -> list[str]:
    """Return the methods that have learned: a model that has not is never fooled, and would lead every comparison."""
    clean = percents(runs, "clean")
    least = np.mean(clean[PLAIN]) - LOSS if PLAIN in clean else 0.0
    return [method for method in runs.methods if method != PLAIN and np.mean(clean[method]) >= least]


def _left_out(runs: Runs) -> str:
    count = len(runs.methods) - (PLAIN in runs.methods) - len(sound(runs))
    return f" (without {count} that lose more than {LOSS} points of clean accuracy)" if count else ""


def by_epsilon(runs: Runs) -> Figure:
    """Draw accuracy against the radius of the attack, the mean over seeds: each method beside plain training."""
    radii = sorted({0.0, *runs.settings["epsilons"]})
    means = {m: [float(np.mean(percents(runs, f"attacked_{radius:g}")[m])) for radius in radii] for m in runs.methods}
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
    """Say how many methods are above plain training at every radius."""
    if PLAIN not in means:
        return "Accuracy under attacks of growing radius"
    others = sound(runs)
    above = [m for m in others if all(own > plain for own, plain in zip(means[m][1:], means[PLAIN][1:], strict=True))]
    return (
        f"{len(above)} of {len(others)} methods keep more than plain training under attack, whatever its radius"
        f"{_left_out(runs)}"
    )


def cost_and_robust(runs: Runs, headline: str, head: str) -> Figure:
    """
    Draw a point per method whose cost was measured, with its name: the mean, with a standard deviation to each side.
    Plain training is black, and methods that lose more than :data:`LOSS` points of clean accuracy are hollow.
    """
    left = percents(runs, headline)
    cost = {method: runs.cost(method) for method in runs.methods if runs.cost(method)}
    points = {method: (float(np.median(cost[method])), float(np.mean(left[method]))) for method in cost}
    learned = [PLAIN, *sound(runs)]
    best = front({method: points[method] for method in learned if method in points})
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for place, (method, point) in enumerate(points.items()):
        color = "black" if method == PLAIN else "tab:blue"
        style = {"marker": MARKERS[place % len(MARKERS)], "color": color, "zorder": 3}
        style["markerfacecolor"] = color if method in learned else "white"
        errors = {"xerr": spread(cost[method]), "yerr": spread(left[method]), "elinewidth": 0.7, "ecolor": "0.8"}
        axes.errorbar(*point, ls="none", ms=7, **errors, **style)
    if PLAIN in points:
        axes.axhline(points[PLAIN][1], color="black", lw=0.7, ls=":")
    axes.set(xlabel="cost, in plain steps", ylabel=f"accuracy under attack, {head} (%)")
    axes.margins(x=0.08)
    if len(best) > 1:
        steps = {"where": "post", "color": "tab:orange", "lw": 1, "zorder": 1}
        axes.step(*zip(*best, strict=True), label="best at its cost or less", **steps)
        axes.legend(loc="lower right", frameon=False)
    axes.set_title(textwrap.fill(of_cost(runs, points, head), 80), fontsize=11, loc="left")
    figure.draw_without_rendering()  # places the axes, which labels are placed by
    label(axes, points, best)
    return figure


def of_cost(runs: Runs, points: dict[str, Point], head: str) -> str:
    """Say which method keeps the most, and at which cost."""
    if not points:
        return "No cost was measured"
    best = max([m for m in sound(runs) if m in points] or points, key=lambda method: points[method][1])
    return (
        f"{best[0].upper()}{best[1:]} keeps the most, {head}: {points[best][1]:.0f} %, "
        f"for {points[best][0]:.1f} plain steps{_left_out(runs)}"
    )


def front(points: dict[str, Point]) -> list[Point]:
    """
    :param points: cost and accuracy of each method.
    :return: those that no other surpasses at the same or a lower cost, by rising cost.

    Example::

        >>> front({"plain": (1.0, 20.0), "FGM": (2.0, 30.0), "PGD": (4.0, 25.0)})
        [(1.0, 20.0), (2.0, 30.0)]
    """
    ordered = sorted(points.values(), key=lambda point: (point[0], -point[1]))
    highest = itertools.accumulate((y for _, y in ordered), max, initial=-np.inf)
    return [point for point, before in zip(ordered, highest, strict=False) if point[1] > before]


def label(axes: Axes, points: dict[str, Point], best: Sequence[Point] = ()) -> None:
    """
    Write each name beside its point: at the place, of some around it, that covers least of other names, points and
    steps. Those with the most points nearby choose first, and all choose again when the others are placed. A line
    leads to a name that is far from its point.

    :param axes: where to, laid out already.
    :param points: by name.
    :param best: points that are joined by steps.
    """
    pixels = axes.figure.dpi / 72
    centres = dict(zip(points, axes.transData.transform(list(points.values())), strict=True)) if points else {}
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
        for far, angle in itertools.product((8, 16, 28, 42), range(0, 360, 30)):
            text = _name_at(axes, name, points[name], far, angle)
            box = text.get_window_extent()
            covered = sum(_overlap(box, other) for other in [*marks.values(), *others])
            crossed = sum(_overlap(box, step) for step in steps) / 4
            outside = box.width * box.height - _overlap(box, axes.bbox)
            own = 1.5 * _distance(box, centres[name])
            unclear = UNCLEAR * any(_distance(box, at) < own for each, at in centres.items() if each != name)
            tried.append((covered + crossed + outside + (unclear + 2 * far) * pixels, len(tried), text, box))
            text.remove()
        _, _, texts[name], placed[name] = min(tried, key=lambda each: each[:2])
        axes.add_artist(texts[name])


def _steps(axes: Axes, best: Sequence[Point], width: float) -> list[Bbox]:
    """Return the room that each line of the steps takes."""
    corners = [(x, y) for i, (x, _) in enumerate(best) for _, y in best[max(i - 1, 0) : i + 1]]
    at = axes.transData.transform(corners) if corners else []
    return [
        Bbox.from_extents(*(np.minimum(a, b) - 3 * width), *(np.maximum(a, b) + 3 * width))
        for a, b in itertools.pairwise(at)
    ]


def _name_at(axes: Axes, name: str, point: Point, far: float, angle: float) -> Annotation:
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
