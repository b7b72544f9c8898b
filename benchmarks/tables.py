"""Records as tables, for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import rich.table

from benchmarks import reading
from benchmarks.reading import Point
from benchmarks.record import Record
from benchmarks.targets import Target

#: the columns that stand on the right
NUMBERS = {
    "seconds a step",
    "in plain steps",
    "limit",
    "peak of each run, MiB",
    "added, MiB",
    "reductions",
    "all-reduce calls",
    "MiB sent by a rank",
    "microseconds a step",
    "% of a plain step",
}


@dataclass(frozen=True)
class Table:
    """A title, to what it applies, column names, and rows of text."""

    title: str
    detail: str
    columns: list[str]
    rows: list[list[str]]

    def for_terminal(self) -> rich.table.Table:
        table = rich.table.Table(title=": ".join(filter(None, (self.title, self.detail))))
        for column in self.columns:
            number = column in NUMBERS
            table.add_column(column, justify="right" if number else "left", no_wrap=number)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        head = [self.columns, ["---:" if column in NUMBERS else "---" for column in self.columns], *self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in head)


def table(found: Record) -> Table:
    """The table of a sweep."""
    return KINDS[found["kind"]](found)


def of_targets(targets: list[Target]) -> Table:
    """What is promised, and what was found."""
    rows = [[t.promise, t.measured, "holds" if t.holds else "does not hold"] for t in targets]
    return Table("Targets", "", ["target", "measured", ""], rows)


def _time(found: Record) -> Table:
    points = found["points"]
    rows = [cells for point in points for cells in _rows(point, several=len(points) > 1)]
    columns = ["", "seconds a step", "in plain steps", "limit"]
    if len(points) > 1:
        return Table(found["title"], "", [found["axis"], *columns], rows)
    return Table(found["title"], f"{points[0]['label']}; {_rounds(points[0])}", columns, rows)


def _precision(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [*cells, ", ".join(f"{cosine:.6f}" for cosine in row["cosines"])]
        for cells, row in zip(_rows(point, several=False), point["rows"])
    ]
    columns = ["", "seconds a step", "in plain steps", "limit", "cosine to float32, climb by climb"]
    return Table(found["title"], f"{point['label']}; {_rounds(point)}", columns, rows)


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
    return Table(found["title"], point["label"], ["", "peak of each run, MiB", "added, MiB"], rows)


def _reductions(found: Record) -> Table:
    (point,) = found["points"]
    rows = [
        [row["variant"], f"{row['reductions']:g}", f"{row['buckets']:g}", f"{row['bytes'] / 2**20:.1f}"]
        for row in point["rows"]
    ]
    columns = ["an optimizer step", "reductions", "all-reduce calls", "MiB sent by a rank"]
    return Table(found["title"], point["label"], columns, rows)


def _overhead(found: Record) -> Table:
    rows = [
        [name, f"{microseconds:.0f}", f"{percent:.2f}"]
        for name, (microseconds, percent) in reading.overheads(found).items()
    ]
    cheap, real = found["points"]
    columns = ["callback", "microseconds a step", "% of a plain step"]
    return Table(found["title"], f"plain step: {real['label']}; {_rounds(cheap)}", columns, rows)


KINDS = {"time": _time, "precision": _precision, "memory": _memory, "reductions": _reductions, "overhead": _overhead}
