"""Records as figures. They can be told apart in black and white: by markers, line styles and hatches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import reading
from benchmarks.record import Record
from benchmarks.words import AXIS

# the same pair of shapes for a method and its textbook loop: full and hollow
MARKERS, STYLES = "osD^v", ("-", "--", "-.", ":")


def draw(found: Record, folder: Path) -> Path | None:
    """The figure of a sweep as a PNG file; ``None`` for a sweep whose table says it all."""
    drawing = _drawing(found)
    if drawing is None:
        return None
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    drawing(found, figure.add_subplot())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['name']}.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path


def _drawing(found: Record) -> Callable[[Record, Axes], None] | None:
    if found["name"] == "rdrop":
        return _rdrop
    if found["kind"] == "time":
        return _bars if len(found["points"]) == 1 else _lines
    return {"memory": _memory, "reductions": _reductions, "precision": _bars}.get(found["kind"])


def _lines(found: Record, axes: Axes) -> None:
    """Each family against the axis, with quartiles, and its limit as a thin line."""
    xs = [point["x"] for point in found["points"]]
    markers, styles = cycle(MARKERS), cycle(STYLES)
    ends: list[tuple[float, str, str]] = []
    for family in reading.families(found):
        book = reading.is_textbook(family)
        if not book:
            marker, style = next(markers), next(styles)
        rows = [reading.of_family(point, family) for point in found["points"]]
        spreads = [reading.in_plain_steps(p, r["variant"]) for p, r in zip(found["points"], rows, strict=True)]
        middle = [s.median for s in spreads]
        errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        look = {"color": "0.45" if book else "black", "marker": marker, "linestyle": style}
        axes.errorbar(xs, middle, errors, mfc="white" if book else "black", capsize=3, **look)
        ends.append((middle[-1], family, look["color"]))
        if not book:
            axes.plot(xs, [r["limit"] for r in rows], color="black", linewidth=0.7, linestyle=(0, (1, 3)))
    axes.plot([], [], color="black", linewidth=0.7, linestyle=(0, (1, 3)), label="limit")
    _axis(found, axes, "time of a step, in plain steps")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="upper left", frameon=False)
    _name_lines(axes, xs[-1], ends)


def _name_lines(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Write the name of each line behind its end, as far from the next as a line of text is high."""
    low = 0.0
    height = 0.05 * axes.get_ylim()[1]
    for y, name, color in sorted(ends):
        low = max(y, low)
        axes.annotate(
            name,
            (x, low),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=color,
            annotation_clip=False,
        )
        low += height


def _rdrop(found: Record, axes: Axes) -> None:
    """How many times as fast `concat` is, and from where on."""
    points = found["points"]
    spreads = [reading.times_faster(p, "R-Drop, concat", "R-Drop, two_pass") for p in points]
    errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    axes.errorbar([p["x"] for p in points], [s.median for s in spreads], errors, color="black", marker="o", capsize=3)
    axes.axhline(1.0, color="black", linewidth=0.7, linestyle=(0, (1, 3)))
    _axis(found, axes, "time of two_pass / time of concat")
    axes.set_title(
        f"R-Drop's concat is faster than two_pass {reading.concat_is_faster(found)}", fontsize="medium", loc="left"
    )


def _axis(found: Record, axes: Axes, y: str) -> None:
    """An axis on which sizes that double stand evenly, with the sizes that were measured."""
    points = found["points"]
    if points[-1]["x"] > 10 * points[0]["x"]:
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([point["x"] for point in points], [point["label"] for point in points])
    axes.set_xlabel(AXIS[found["name"]])
    axes.set_ylabel(y)
    axes.set_title(reading.seen(found) if found["name"] != "rdrop" else "", fontsize="medium", loc="left")


def _bars(found: Record, axes: Axes) -> None:
    """A bar for each variant, with quartiles, and its limit as a mark."""
    (point,) = found["points"]
    rows = [row for row in reversed(point["rows"]) if row["variant"] != "plain"]
    spreads = [reading.in_plain_steps(point, row["variant"]) for row in rows]
    errors = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    names = [row["variant"] for row in rows]
    _hatched(axes, names, [s.median for s in spreads], xerr=errors, capsize=3)
    axes.plot(
        [row["limit"] for row in rows],
        range(len(rows)),
        "|",
        color="black",
        markersize=16,
        label="limit",
    )
    axes.legend(fontsize="small")
    axes.set_xlabel("time of a step, in plain steps (median and quartiles)")
    axes.set_title(f"{reading.seen(found)}\n{point['label']}", fontsize="medium", loc="left")


def _memory(found: Record, axes: Axes) -> None:
    (point,) = found["points"]
    added = dict(reversed(reading.memory_added(point).items()))
    _hatched(axes, list(added), list(added.values()))
    axes.set_xlabel("peak above that of plain training, MiB")
    axes.set_title(f"{reading.seen(found)}\n{point['label']}", fontsize="medium", loc="left")


def _reductions(found: Record, axes: Axes) -> None:
    (point,) = found["points"]
    rows = point["rows"][::-1]
    _hatched(axes, [row["variant"] for row in rows], [row["reductions"] for row in rows])
    axes.set_xlabel("reductions of all gradients in an optimizer step")
    axes.set_title(reading.seen(found), fontsize="medium", loc="left")


def _hatched(axes: Axes, names: list[str], values: list[float], **errors) -> None:
    """Horizontal bars: grey for this package, white and hatched for the textbook."""
    bars = axes.barh(names, values, color="0.7", edgecolor="black", **errors)
    for name, bar in zip(names, bars, strict=True):
        if reading.is_textbook(name):
            bar.set(facecolor="white", hatch="//")
