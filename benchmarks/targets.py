"""What the package promises of its costs, and whether the records keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import reading
from benchmarks.record import Record


class Target(NamedTuple):
    """A promise, what was measured, and whether it holds."""

    promise: str
    measured: str
    holds: bool


def targets(records: dict[str, Record]) -> list[Target]:
    """Those of the sweeps that are there."""
    found = [(check, records[name]) for name, check in CHECKS.items() if name in records]
    return [target for check, record in found for target in check(record)]


def _methods(found: Record) -> Iterator[Target]:
    point = found["points"][0]
    yield from _at_most(point, {"PGD-3": 3.6, "FGM": 2.1})
    name, least = "PGD-3", 1.35
    faster = reading.times_faster(point, name, f"{name}, textbook")
    promise = f"{name}: at least {least} times as fast as the textbook loop"
    yield Target(promise, faster.text(".2f"), faster.median >= least)


def _fraction(found: Record) -> Iterator[Target]:
    by_hand = {"FGM, 1/4, replace": 1.25, "FGM, 1/8, replace": 1.15, "PGD-3, 1/4, replace": 1.6}
    point = found["points"][0]
    for target, name in zip(_at_most(point, by_hand), by_hand, strict=True):
        hand = reading.in_plain_steps(point, f"{name}, by hand")
        yield target._replace(measured=f"{target.measured}; by hand {hand.median:.2f}")
    yield from _at_most(point, {"AWP, 1/4, replace": 1.5, "SAM, 1/4": 1.5})


def _at_most(point: reading.Point, limits: dict[str, float]) -> Iterator[Target]:
    for name, most in limits.items():
        spread = reading.in_plain_steps(point, name)
        promise = f"{name}: at most {most} plain steps"
        yield Target(promise, spread.text(".2f"), spread.median <= most)


def _memory(found: Record) -> Iterator[Target]:
    added, most = reading.memory_added(found["points"][0]), 40
    for name in [name for name in added if f"{name}, textbook" in added]:
        text = f"{added[name]:.0f} MiB (textbook: {added[f'{name}, textbook']:.0f} MiB)"
        yield Target(f"{name}: under {most} MiB more than a plain step", text, added[name] < most)


def _vocabulary(found: Record) -> Iterator[Target]:
    first, last = found["points"][0], found["points"][-1]
    for name in ("FGM", "PGD-3"):
        small, large = (reading.in_plain_steps(point, name).median for point in (first, last))
        promise = f"{name}: costs no more (10 % for noise) with {last['label']} words than with {first['label']}"
        text = f"{small:.2f} and {large:.2f} plain steps"
        yield Target(promise, text, large <= 1.1 * small)


def _overhead(found: Record) -> Iterator[Target]:
    for name, (microseconds, percent) in reading.overheads(found).items():
        text = f"{percent.text('.2f')} %, {microseconds.median:.0f} µs"
        yield Target(f"{name}: overhead under 1 % of a plain step", text, percent.median < 1)


def _rdrop(found: Record) -> Iterator[Target]:
    first = min(found["points"], key=lambda point: point["x"])
    faster = reading.times_faster(first, "R-Drop, concat", "R-Drop, two_pass")
    where = reading.concat_is_faster(found)
    text = f"{faster.text('.2f')} times as fast at {first['label']}; faster {where}"
    yield Target("R-Drop: `concat` faster than two passes on small batches", text, faster.median > 1)


def _reductions(found: Record) -> Iterator[Target]:
    rows = [row for row in found["points"][0]["rows"] if not reading.is_textbook(row["variant"])]
    most = max(row["reductions"] for row in rows)
    text = f"{most:g}, over {len(rows)} ways to train"
    yield Target("Gradients are reduced once per optimizer step", text, abs(most - 1) < 1e-6)


CHECKS: dict[str, Callable[[Record], Iterator[Target]]] = {
    "methods": _methods,
    "fraction": _fraction,
    "memory": _memory,
    "vocabulary": _vocabulary,
    "overhead": _overhead,
    "rdrop": _rdrop,
    "reductions": _reductions,
}
