"""What the records say, as numbers: ratios to a plain step, memory added, overhead, and from where on `concat` wins."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.overhead import PAIRS
from benchmarks.record import Record
from benchmarks.statistic import Spread, difference, ratio
from benchmarks.words import AXIS

Point = dict[str, Any]

#: by how much a time may be above its limit: the quartiles of most are further apart
WITHIN = 1.03


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


def is_textbook(variant: str) -> bool:
    """Whether it is a hand-written loop, rather than of this package."""
    return variant.endswith(("textbook", "by hand"))


def seen(found: Record) -> str:
    """Say what a record shows, in one line: where the package and a textbook loop are furthest apart."""
    point = found["points"][-1]
    variants = [row["variant"] for row in point["rows"]]
    pairs = [(name, f"{name}, textbook") for name in variants if f"{name}, textbook" in variants]
    if found["kind"] == "reductions":
        most = max(row["reductions"] for row in point["rows"] if not is_textbook(row["variant"]))
        often = "once" if most == 1 else f"up to {most:g} times"
        return f"Gradients are reduced {often} per optimizer step, whatever the method"
    if found["kind"] == "memory":
        added = memory_added(point)
        name, loop = max(pairs, key=lambda pair: added[pair[1]] - added[pair[0]])
        return f"{name} adds {max(added[name], 0):.0f} MiB, its textbook loop {added[loop]:.0f}"
    steps = {name: in_plain_steps(point, name).median for name in variants}
    if len(found["points"]) > 1:
        name, loop = max(pairs, key=lambda pair: steps[pair[1]] / steps[pair[0]])
        unit, inside, _ = AXIS[found["name"]].partition(" in ")
        size = (
            point["label"]
            if "=" in point["label"]
            else f"{point['label']} {unit}"
            if inside
            else f"{unit} {point['label']}"
        )
        return f"At {size}, {name} takes {steps[name]:.1f} plain steps, its textbook loop {steps[loop]:.1f}"
    own = [row for row in point["rows"] if row["variant"] != "plain" and not is_textbook(row["variant"])]
    within = [row for row in own if steps[row["variant"]] <= WITHIN * row["limit"]]
    return f"{len(within)} of {len(own)} stay at their limit, what their passes come to"


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
    """At which sizes of batch `concat` beats two passes in three rounds of four."""
    points = sorted(found["points"], key=lambda point: point["x"])
    gains = [times_faster(p, "R-Drop, concat", "R-Drop, two_pass").low > 1 for p in points]
    wins = [f"{p['x']:,}" for p, gain in zip(points, gains, strict=True) if gain]
    if not wins:
        return "nowhere"
    if all(gains):
        return "at all sizes"
    if gains == sorted(gains, reverse=True):
        return f"up to {wins[-1]} tokens"
    if gains == sorted(gains):
        return f"from {wins[0]} tokens on"
    return f"at {', '.join(wins)} tokens"
