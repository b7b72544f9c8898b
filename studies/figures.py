"""
The figures of a study. Panels and markers tell the methods apart, so they can be read in black and white.
"""

from __future__ import annotations

import itertools
import statistics
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from studies.methods import PLAIN
from studies.runs import Runs, spread
from studies.tasks import Task

LEAST_SEEDS = 3  # of most methods: fewer draw chance
MARKERS = "os^Dv<>pP*Xdhx"
COLUMNS = 5
#: points of clean accuracy: who loses more than that has learned less than plain training, or nothing
LOSS = 3
Values = dict[str, list[float]]
Point = tuple[float, float]


def draw(runs: Runs, task: type[Task]) -> list[str]:
    """Write the figures beside the runs, and return their names; none for a task without a headline, or few seeds."""
    headline = task.headline(runs.settings)
    if headline is None or statistics.median(len(runs.values(each, "clean")) for each in runs.methods) < LEAST_SEEDS:
        return []
    drawn = {"accuracy_by_epsilon.png": by_epsilon(runs)} if "epsilons" in runs.settings else {}
    drawn["cost_and_robust.png"] = cost_and_robust(runs, headline, task.columns(runs.settings)[headline])
    for name, figure in drawn.items():
        for axes in figure.axes:
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(runs.folder / name, dpi=150)
        plt.close(figure)
    return [*drawn]


def percents(runs: Runs, column: str) -> Values:
    """Return the results of each method, for each seed, in %."""
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
    curves = zip(*(percents(runs, f"attacked_{radius:g}").values() for radius in radii), strict=True)
    means = {method: [*map(np.mean, curve)] for method, curve in zip(runs.methods, curves, strict=True)}
    plain = means.pop(PLAIN, None)
    columns = min(COLUMNS, max(1, len(means)))
    rows = max(1, -(-len(means) // columns))
    size = {"figsize": (max(7, 2 * columns), 2 * rows + 0.8), "layout": "constrained"}
    figure, grid = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, **size)
    for axes, (method, curve) in itertools.zip_longest(grid.flat, means.items(), fillvalue=("", [])):
        axes.set_visible(bool(curve))
        for place, other in enumerate(means.values()):
            axes.plot(radii, other, color="0.85", lw=1, label="" if place else "others")
        if plain is not None:
            axes.plot(radii, plain, "k:o", ms=4, markerfacecolor="white", label=PLAIN)
        if curve:
            axes.plot(radii, curve, "-s", color="tab:blue", ms=4, label="this method")
        axes.set_title(textwrap.fill(method, 22), fontsize=10)
        axes.set(ylim=(0, None), xticks=radii)
    for axes in grid.flat[: len(means)][-columns:]:
        axes.tick_params(labelbottom=True)  # the last of each column
    figure.supxlabel("ε, in units of the mean norm of the word vectors", fontsize=10)
    figure.supylabel("accuracy under attack (%)", fontsize=10)
    if plain is not None:
        others = sound(runs)
        above = [m for m in others if all(own > other for own, other in zip(means[m][1:], plain[1:], strict=True))]
        told = f"{len(above)} of {len(others)} methods keep more than plain training under attack, whatever its radius"
        figure.suptitle(textwrap.fill(told + _left_out(runs), 100))
    grid.flat[0].legend(fontsize=7, frameon=False)
    return figure


def cost_and_robust(runs: Runs, headline: str, head: str) -> Figure:
    """
    Draw a point per method whose cost was measured, with its name: the mean, with a standard deviation to each side.
    Plain training is black, and methods that lose more than :data:`LOSS` points of clean accuracy are hollow.
    """
    left = percents(runs, headline)
    cost = {method: runs.cost(method) for method in runs.methods if runs.cost(method)}
    points = {method: (float(np.median(cost[method])), float(np.mean(left[method]))) for method in cost}
    learned = {method: points[method] for method in [PLAIN, *sound(runs)] if method in points}
    figure, axes = plt.subplots(figsize=(8, max(5, 0.3 * len(points))), layout="constrained")
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
    best = front(learned)
    if len(best) > 1:
        steps = {"where": "post", "color": "tab:orange", "lw": 1, "zorder": 1}
        axes.step(*zip(*best, strict=True), label="best at its cost or less", **steps)
        axes.legend(loc="lower right", frameon=False)
    if learned:
        leader = max(learned, key=lambda method: learned[method][1])
        x, y = learned[leader]
        told = f"{leader[0].upper()}{leader[1:]} keeps the most ({head}): {y:.0f} %, for {x:.1f} plain steps"
        axes.set_title(textwrap.fill(told + _left_out(runs), 80), fontsize=11, loc="left")
    figure.draw_without_rendering()  # places the axes, which labels are placed by
    label(axes, points, best)
    return figure


def front(points: dict[str, Point]) -> list[Point]:
    """
    Return the points that no other surpasses at the same or a lower cost, by rising cost.

    Example::

        >>> front({"plain": (1.0, 20.0), "FGM": (2.0, 30.0), "PGD": (4.0, 25.0)})
        [(1.0, 20.0), (2.0, 30.0)]
    """
    ordered = sorted(points.values(), key=lambda point: (point[0], -point[1]))
    highest = itertools.accumulate((y for _, y in ordered), max, initial=-np.inf)
    return [point for point, before in zip(ordered, highest, strict=False) if point[1] > before]


def label(axes: Axes, points: dict[str, Point], best: list[Point]) -> None:
    """
    Write each name beside its point, at the place, of some around it, that covers least of other names, points and
    steps, and is not as close to another point. A line leads to a name that is far from its point.

    :param axes: where to, laid out already.
    :param points: by name.
    :param best: points that are joined by steps.
    """
    pixels = axes.figure.dpi / 72
    centres = {name: axes.transData.transform(point) for name, point in points.items()}
    corners = [
        axes.transData.transform((x, y)) for i, (x, _) in enumerate(best) for _, y in best[max(i - 1, 0) : i + 1]
    ]
    fixed = [_box((a + b) / 2, abs(a - b) / 2 + 3 * pixels) for a, b in itertools.pairwise(corners)]
    fixed += [_box(centre, 6 * pixels) for centre in centres.values()]
    inside = np.array([axes.bbox.min, axes.bbox.max])
    outline = [withStroke(linewidth=2.5, foreground="white")]  # lines do not strike a name through
    line = {"arrowstyle": "-", "color": "0.5", "lw": 0.7, "shrinkA": 0, "shrinkB": 4}
    options = {"ha": "center", "va": "center", "textcoords": "offset points", "path_effects": outline}
    texts = {
        name: axes.annotate(name, at, (0, 0), fontsize=10, arrowprops=line, **options) for name, at in points.items()
    }
    extents = {name: text.get_window_extent() for name, text in texts.items()}
    nearby = {name: sum(np.abs(at - centres[name]).max() < 60 * pixels for at in centres.values()) for name in points}
    placed: dict[str, np.ndarray] = {}
    # Those with the most points nearby choose first, and all choose again when the others are placed.
    for name in sorted(points, key=nearby.__getitem__, reverse=True) * 2:
        others = [*fixed, *(box for other, box in placed.items() if other != name)]
        half = np.array([extents[name].width, extents[name].height]) / 2
        tried = []
        for far, angle in itertools.product((8, 16, 28, 42, 60), range(0, 360, 30)):
            direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            offset = far * pixels * direction + half * np.sign(direction.round(1)) * (np.abs(direction) > 0.4)
            box = _box(centres[name] + offset, half)
            covered = sum(_overlap(box, other) for other in others) - _overlap(box, inside)
            own = 1.5 * _distance(box, centres[name])
            unclear = any(_distance(box, at) < own for each, at in centres.items() if each != name)
            tried.append((covered + (60 * unclear + 2 * far) * pixels, far, tuple(offset / pixels), box))
        _, far, place, placed[name] = min(tried, key=lambda each: each[:2])
        texts[name].set_position(place)
        texts[name].arrow_patch.set_visible(far > 20)


def _box(centre: np.ndarray, half: np.ndarray | float) -> np.ndarray:
    return np.array([centre - half, centre + half])


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    return float(np.maximum(0, np.minimum(box[1], other[1]) - np.maximum(box[0], other[0])).prod())


def _distance(box: np.ndarray, at: np.ndarray) -> float:
    return float(np.hypot(*np.maximum(0, np.maximum(box[0] - at, at - box[1]))))
