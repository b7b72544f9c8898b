"""What the records say, as numbers: ratios to a plain step, memory added, overhead, and from where on `concat` wins."""

from __future__ import annotations

import statistics
from typing import Any, Dict

from benchmarks.overhead import PAIRS
from benchmarks.record import Record
from benchmarks.statistic import Spread, difference, ratio

Point = Dict[str, Any]


def row(point: Point, variant: str) -> dict[str, Any]:
    """That of a variant."""
    return next(row for row in point["rows"] if row["variant"] == variant)


def in_plain_steps(point: Point, variant: str) -> Spread:
    """The time of a step, with the quartiles of the ratio."""
    return ratio(row(point, variant)["seconds"], row(point, "plain")["seconds"])


def times_faster(point: Point, variant: str, than: str) -> Spread:
    """How many times as long the other one takes."""
    return ratio(row(point, than)["seconds"], row(point, variant)["seconds"])


def families(found: Record) -> list[str]:
    """The lines of a sweep's figure: variants that go on from point to point. The plain step is the unit."""
    rows = [row for point in found["points"] for row in point["rows"]]
    return list(dict.fromkeys(row["family"] for row in rows if row["family"] != "plain"))


def of_family(point: Point, family: str) -> dict[str, Any]:
    """The row of a family at a point."""
    return next(row for row in point["rows"] if row["family"] == family)


def memory_added(point: Point) -> dict[str, float]:
    """MiB above the plain step."""
    plain = statistics.median(row(point, "plain")["mib"])
    return {row["variant"]: statistics.median(row["mib"]) - plain for row in point["rows"] if row["variant"] != "plain"}


def overheads(found: Record) -> dict[str, tuple[Spread, Spread]]:
    """What each callback adds: in microseconds, and in per cent of a plain step of the real model."""
    cheap, real = found["points"]
    plain = statistics.median(row(real, "plain")["seconds"])
    out = {}
    for name, other in PAIRS.items():
        added = difference(row(cheap, name)["seconds"], row(cheap, other)["seconds"])
        out[name] = (Spread(*(1e6 * v for v in added)), Spread(*(100 * v / plain for v in added)))
    return out


def concat_is_faster(found: Record) -> str:
    """At which sizes of batch `concat` beats two passes in three rounds of four, in words."""
    points = sorted(found["points"], key=lambda point: point["x"])
    gains = [times_faster(p, "R-Drop, concat", "R-Drop, two_pass").low > 1 for p in points]
    wins = [p["x"] for p, gain in zip(points, gains) if gain]
    if not wins:
        return "nowhere"
    if all(gains):
        return "at all sizes"
    if gains == sorted(gains, reverse=True):
        return f"up to {wins[-1]:,} tokens"
    if gains == sorted(gains):
        return f"from {wins[0]:,} tokens on"
    return f"at {', '.join(f'{tokens:,}' for tokens in wins)} tokens"
