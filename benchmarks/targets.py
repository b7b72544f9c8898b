"""What the package promises of its costs, and whether the records keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import reading
from benchmarks.record import Record
from benchmarks.words import ENGLISH, Words, variant


class Target(NamedTuple):
    """A promise, what was measured, and whether it holds."""

    promise: str
    measured: str
    holds: bool


def targets(records: dict[str, Record], words: Words = ENGLISH) -> list[Target]:
    """Those of the sweeps that are there."""
    found = [(check, records[name]) for name, check in CHECKS.items() if name in records]
    return [target for check, record in found for target in check(record, words)]


def _methods(found: Record, words: Words) -> Iterator[Target]:
    point = found["points"][0]
    yield from _at_most(point, {"PGD-3": 3.6, "FGM": 2.1}, words)
    name, least = "PGD-3", 1.35
    faster = reading.times_faster(point, name, f"{name}, textbook")
    promise = words["targets"]["faster"].format(variant=variant(name, words), least=least)
    yield Target(promise, faster.text(".2f", words), faster.median >= least)


def _fraction(found: Record, words: Words) -> Iterator[Target]:
    limits = {"FGM, 1/4, replace": 1.25, "FGM, 1/8, replace": 1.15, "PGD-3, 1/4, replace": 1.6}
    point, said = found["points"][0], words["targets"]
    for target, name in zip(_at_most(point, limits, words), limits, strict=True):
        hand = reading.in_plain_steps(point, f"{name}, by hand")
        yield target._replace(measured=said["by hand"].format(own=target.measured, hand=f"{hand.median:.2f}"))


def _at_most(point: reading.Point, limits: dict[str, float], words: Words) -> Iterator[Target]:
    for name, most in limits.items():
        spread = reading.in_plain_steps(point, name)
        promise = words["targets"]["at most"].format(variant=variant(name, words), most=most)
        yield Target(promise, spread.text(".2f", words), spread.median <= most)


def _memory(found: Record, words: Words) -> Iterator[Target]:
    added, most, said = reading.memory_added(found["points"][0]), 40, words["targets"]
    for name in [name for name in added if f"{name}, textbook" in added]:
        text = said["memory measured"].format(own=added[name], book=added[f"{name}, textbook"])
        yield Target(said["memory"].format(variant=variant(name, words), most=most), text, added[name] < most)


def _vocabulary(found: Record, words: Words) -> Iterator[Target]:
    first, last = found["points"][0], found["points"][-1]
    for name in ("FGM", "PGD-3"):
        small, large = (reading.in_plain_steps(point, name).median for point in (first, last))
        labels = {"small": first["label"], "large": last["label"]}
        promise = words["targets"]["vocabulary"].format(variant=variant(name, words), **labels)
        text = words["targets"]["vocabulary measured"].format(small=small, large=large)
        yield Target(promise, text, large <= 1.1 * small)


def _overhead(found: Record, words: Words) -> Iterator[Target]:
    said = words["targets"]
    for name, (microseconds, percent) in reading.overheads(found).items():
        numbers = {"percent": percent.text(".2f", words), "microseconds": f"{microseconds.median:.0f}"}
        promise = said["overhead"].format(variant=variant(name, words))
        yield Target(promise, said["overhead measured"].format(**numbers), percent.median < 1)


def _rdrop(found: Record, words: Words) -> Iterator[Target]:
    first = min(found["points"], key=lambda point: point["x"])
    faster = reading.times_faster(first, "R-Drop, concat", "R-Drop, two_pass")
    where = reading.concat_is_faster(found, words)
    text = words["targets"]["rdrop measured"].format(
        faster=faster.text(".2f", words), label=first["label"], where=where
    )
    yield Target(words["targets"]["rdrop"], text, faster.median > 1)


def _reductions(found: Record, words: Words) -> Iterator[Target]:
    rows = [row for row in found["points"][0]["rows"] if not row["variant"].endswith("textbook")]
    most = max(row["reductions"] for row in rows)
    text = words["targets"]["reductions measured"].format(most=most, ways=len(rows))
    yield Target(words["targets"]["reductions"], text, abs(most - 1) < 1e-6)


CHECKS: dict[str, Callable[[Record, Words], Iterator[Target]]] = {
    "methods": _methods,
    "fraction": _fraction,
    "memory": _memory,
    "vocabulary": _vocabulary,
    "overhead": _overhead,
    "rdrop": _rdrop,
    "reductions": _reductions,
}
