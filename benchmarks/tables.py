"""Records as tables, for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import reading
from benchmarks.reading import Point
from benchmarks.record import Record
from benchmarks.targets import Target
from benchmarks.words import ENGLISH, Words, variant
from tools.table import Table


def table(found: Record, words: Words = ENGLISH) -> Table:
    """The table of a sweep."""
    return KINDS[found["kind"]](found, words)


def of_targets(targets: list[Target], words: Words = ENGLISH) -> Table:
    """What is promised, and what was found."""
    said = words["targets"]
    rows = [[t.promise, t.measured, said[t.holds]] for t in targets]
    return Table(said["columns"], rows, left=3, title=said["title"])


def _time(found: Record, words: Words) -> Table:
    points, title, columns = found["points"], words["title"][found["name"]], words["columns"]["time"]
    rows = [cells for point in points for cells in _rows(point, words, several=len(points) > 1)]
    if len(points) > 1:
        return Table([words["axis"][found["name"]], *columns], rows, left=2, title=title)
    return Table(columns, rows, title=title, detail=_detail(points[0], words))


def _precision(found: Record, words: Words) -> Table:
    (point,) = found["points"]
    rows = [
        [*cells, words["numbers"].join(f"{cosine:.6f}" for cosine in row["cosines"])]
        for cells, row in zip(_rows(point, words, several=False), point["rows"], strict=True)
    ]
    columns = [*words["columns"]["time"], *words["columns"]["precision"]]
    return Table(columns, rows, title=words["title"][found["name"]], detail=_detail(point, words))


def _rows(point: Point, words: Words, several: bool) -> Iterator[list[str]]:
    """A row for each variant; where there are several points, the first row tells which one this is."""
    label = [words["labelled"].format(label=point["label"], rounds=_rounds(point, words))] if several else []
    for row in point["rows"]:
        seconds = f"{statistics.median(row['seconds']):.3f}"
        ratio = reading.in_plain_steps(point, row["variant"]).text(".2f", words)
        yield [*label, variant(row["variant"], words), seconds, ratio, f"{row['limit']:.2f}"]
        label = [""] * several


def _rounds(point: Point, words: Words) -> str:
    return words["rounds"].format(count=len(point["rows"][0]["seconds"]))


def _label(point: Point, words: Words) -> str:
    return words["label"].format(label=point["label"], **point["setting"])


def _detail(point: Point, words: Words) -> str:
    return words["detail"].format(label=_label(point, words), rounds=_rounds(point, words))


def _memory(found: Record, words: Words) -> Table:
    (point,) = found["points"]
    added = reading.memory_added(point)
    rows = []
    for row in point["rows"]:
        name = row["variant"]
        runs = words["numbers"].join(f"{mib:.0f}" for mib in row["mib"])
        rows.append([variant(name, words), runs, f"{added[name]:.0f}" if name in added else ""])
    return Table(words["columns"]["memory"], rows, title=words["title"][found["name"]], detail=_label(point, words))


def _reductions(found: Record, words: Words) -> Table:
    (point,) = found["points"]
    rows = [
        [variant(row["variant"], words), f"{row['reductions']:g}", f"{row['buckets']:g}", f"{row['bytes'] / 2**20:.1f}"]
        for row in point["rows"]
    ]
    columns = words["columns"]["reductions"]
    return Table(columns, rows, title=words["title"][found["name"]], detail=_label(point, words))


def _overhead(found: Record, words: Words) -> Table:
    rows = [
        [variant(name, words), microseconds.text(".0f", words), percent.text(".2f", words)]
        for name, (microseconds, percent) in reading.overheads(found).items()
    ]
    cheap, real = found["points"]
    detail = words["plain step"].format(label=_label(real, words), rounds=_rounds(cheap, words))
    return Table(words["columns"]["overhead"], rows, title=words["title"][found["name"]], detail=detail)


KINDS = {"time": _time, "precision": _precision, "memory": _memory, "reductions": _reductions, "overhead": _overhead}
