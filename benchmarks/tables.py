"""Records as tables, for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import reading
from benchmarks.reading import Point
from benchmarks.record import Record
from benchmarks.targets import Target
from benchmarks.words import AXIS, COLUMNS, TITLE
from tools.table import Table


def table(found: Record) -> Table:
    """The table of a sweep."""
    return KINDS[found["kind"]](found)


def of_targets(targets: list[Target]) -> Table:
    """What is promised, and what was found."""
    rows = [[t.promise, t.measured, "holds" if t.holds else "does not hold"] for t in targets]
    return Table(["target", "measured", ""], rows, left=3, title="Targets")


def _time(found: Record) -> Table:
    points, title, columns = found["points"], TITLE[found["name"]], COLUMNS["time"]
    rows = [cells for point in points for cells in _rows(point, several=len(points) > 1)]
    if len(points) > 1:
        return Table([AXIS[found["name"]], *columns], rows, left=2, title=title)
    return Table(columns, rows, title=title, detail=_detail(points[0]))


def _precision(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [*cells, ", ".join(f"{cosine:.6f}" for cosine in row["cosines"])]
        for cells, row in zip(_rows(point, several=False), point["rows"], strict=True)
    ]
    columns = [*COLUMNS["time"], *COLUMNS["precision"]]
    return Table(columns, rows, title=TITLE[found["name"]], detail=_detail(point))


def _rows(point: Point, several: bool) -> Iterator[list[str]]:
    """A row for each variant; where there are several points, the first row tells which one this is."""
    label = [f"{point['label']} ({_rounds(point)})"] if several else []
    for row in point["rows"]:
        seconds = f"{statistics.median(row['seconds']):.3f}"
        ratio = reading.in_plain_steps(point, row["variant"]).text(".2f")
        yield [*label, row["variant"], seconds, ratio, f"{row['limit']:.2f}"]
        label = [""] * several


def _rounds(point: Point) -> str:
    return f"{len(point['rows'][0]['seconds'])} rounds"


def _detail(point: Point) -> str:
    return f"{point['label']}; {_rounds(point)}"


def _memory(found: Record) -> Table:
    (point,) = found["points"]
    added = reading.memory_added(point)
    rows = []
    for row in point["rows"]:
        name = row["variant"]
        runs = ", ".join(f"{mib:.0f}" for mib in row["mib"])
        rows.append([name, runs, f"{added[name]:.0f}" if name in added else ""])
    return Table(COLUMNS["memory"], rows, title=TITLE[found["name"]], detail=point["label"])


def _reductions(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [row["variant"], f"{row['reductions']:g}", f"{row['buckets']:g}", f"{row['bytes'] / 2**20:.1f}"]
        for row in point["rows"]
    ]
    columns = COLUMNS["reductions"]
    return Table(columns, rows, title=TITLE[found["name"]], detail=point["label"])


def _overhead(found: Record) -> Table:
    rows = [
        [name, microseconds.text(".0f"), percent.text(".2f")]
        for name, (microseconds, percent) in reading.overheads(found).items()
    ]
    cheap, real = found["points"]
    detail = f"Plain step: {real['label']}; {_rounds(cheap)}"
    return Table(COLUMNS["overhead"], rows, title=TITLE[found["name"]], detail=detail)


KINDS = {"time": _time, "precision": _precision, "memory": _memory, "reductions": _reductions, "overhead": _overhead}
