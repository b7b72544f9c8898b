"""Records as tables, for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import reading
from benchmarks.reading import Point
from benchmarks.record import Record
from benchmarks.targets import Target
from tools.table import Table


def table(found: Record) -> Table:
    """The table of a sweep."""
    return KINDS[found["kind"]](found)


def of_targets(targets: list[Target]) -> Table:
    """What is promised, and what was found."""
    rows = [[t.promise, t.measured, "holds" if t.holds else "does not hold"] for t in targets]
    return Table(["target", "measured", ""], rows, left=3, title="Targets")


def _time(found: Record) -> Table:
    points = found["points"]
    rows = [cells for point in points for cells in _rows(point, several=len(points) > 1)]
    columns = ["", "seconds per step", "in plain steps", "limit"]
    if len(points) > 1:
        return Table([found["axis"], *columns], rows, left=2, title=found["title"])
    return Table(columns, rows, title=found["title"], detail=f"{points[0]['label']}; {_rounds(points[0])}")


def _precision(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [*cells, ", ".join(f"{cosine:.6f}" for cosine in row["cosines"])]
        for cells, row in zip(_rows(point, several=False), point["rows"])
    ]
    columns = ["", "seconds per step", "in plain steps", "limit", "cosine to float32, ascent step by ascent step"]
    return Table(columns, rows, title=found["title"], detail=f"{point['label']}; {_rounds(point)}")


def _rows(point: Point, several: bool) -> Iterator[list[str]]:
    """A row for each variant; where there are several points, the first row tells which one this is."""
    label = [f"{point['label']} ({_rounds(point)})"] if several else []
    for row in point["rows"]:
        seconds = f"{statistics.median(row['seconds']):.3f}"
        ratio = f"{reading.in_plain_steps(point, row['variant']):.2f}"
        yield [*label, row["variant"], seconds, ratio, f"{row['limit']:.2f}"]
        label = [""] * several


def _rounds(point: Point) -> str:
    return f"{len(point['rows'][0]['seconds'])} rounds"


def _memory(found: Record) -> Table:
    (point,) = found["points"]
    added = reading.memory_added(point)
    rows = []
    for row in point["rows"]:
        runs = ", ".join(f"{mib:.0f}" for mib in row["mib"])
        rows.append([row["variant"], runs, f"{added[row['variant']]:.0f}" if row["variant"] in added else ""])
    return Table(["", "peak of each run, MiB", "added, MiB"], rows, title=found["title"], detail=point["label"])


def _reductions(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [row["variant"], f"{row['reductions']:g}", f"{row['buckets']:g}", f"{row['bytes'] / 2**20:.1f}"]
        for row in point["rows"]
    ]
    columns = ["per optimizer step", "reductions", "all-reduce calls", "MiB sent by a rank"]
    return Table(columns, rows, title=found["title"], detail=point["label"])


def _overhead(found: Record) -> Table:
    rows = [
        [name, f"{microseconds:.0f}", f"{percent:.2f}"]
        for name, (microseconds, percent) in reading.overheads(found).items()
    ]
    cheap, real = found["points"]
    columns = ["callback", "microseconds per step", "% of a plain step"]
    return Table(columns, rows, title=found["title"], detail=f"plain step: {real['label']}; {_rounds(cheap)}")


KINDS = {"time": _time, "precision": _precision, "memory": _memory, "reductions": _reductions, "overhead": _overhead}
