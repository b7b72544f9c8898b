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
    return [target for name, check in CHECKS.items() if name in records for target in check(records[name])]


def _methods(found: Record) -> Iterator[Target]:
    point = found["points"][0]
    for variant, most in {"PGD-3": 3.6, "FGM": 2.1}.items():
        spread = reading.in_plain_steps(point, variant)
        yield Target(f"{variant}: at most {most} plain steps", f"{spread:.2f}", spread.median <= most)
    faster = reading.times_faster(point, "PGD-3", "PGD-3, textbook")
    yield Target("PGD-3: at least 1.35 times as fast as the textbook loop", f"{faster:.2f}", faster.median >= 1.35)


def _fraction(found: Record) -> Iterator[Target]:
    point = found["points"][0]
    for variant, most in {"FGM, 1/4, replace": 1.25, "FGM, 1/8, replace": 1.15, "PGD-3, 1/4, replace": 1.6}.items():
        spread = reading.in_plain_steps(point, variant)
        yield Target(f"{variant}: at most {most} plain steps", f"{spread:.2f}", spread.median <= most)


def _memory(found: Record) -> Iterator[Target]:
    added = reading.memory_added(found["points"][0])
    for variant in [name for name in added if f"{name}, textbook" in added]:
        text = f"{added[variant]:.0f} MiB (textbook: {added[f'{variant}, textbook']:.0f} MiB)"
        yield Target(f"{variant}: under 40 MiB more than a plain step", text, added[variant] < 40)


def _vocabulary(found: Record) -> Iterator[Target]:
    first, last = found["points"][0], found["points"][-1]
    for variant in ("FGM", "PGD-3"):
        small, large = (reading.in_plain_steps(point, variant).median for point in (first, last))
        text = f"{small:.2f} and {large:.2f} plain steps"
        promise = f"{variant}: no dearer (10 % for noise) with {last['label']} words than with {first['label']}"
        yield Target(promise, text, large <= 1.1 * small)


def _overhead(found: Record) -> Iterator[Target]:
    for variant, (microseconds, percent) in reading.overheads(found).items():
        text = f"{percent:.2f} %, {microseconds.median:.0f} µs"
        yield Target(f"{variant}: overhead under 1 % of a plain step", text, percent.median < 1)


def _rdrop(found: Record) -> Iterator[Target]:
    first = min(found["points"], key=lambda point: point["x"])
    faster = reading.times_faster(first, "R-Drop, concat", "R-Drop, two_pass")
    text = f"{faster:.2f} times as fast at {first['label']}; faster {reading.concat_is_faster(found)}"
    yield Target("R-Drop: `concat` faster than two passes on small batches", text, faster.median > 1)


def _reductions(found: Record) -> Iterator[Target]:
    rows = [row for row in found["points"][0]["rows"] if not row["variant"].endswith("textbook")]
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
