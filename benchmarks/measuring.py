"""Runs a sweep: its points, one after the other, as rows of plain numbers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks import memory, overhead, precision, reductions
from benchmarks.sweeps import Point, Sweep
from benchmarks.timing import measure, steppers

Tick = Callable[[int, int], None]


def run(sweep: Sweep, *, rounds: int | None = None, tick: Tick = lambda done, of: None) -> list[dict[str, Any]]:
    """
    Measure all points.

    :param sweep: what to measure.
    :param rounds: exactly so many, instead of as many as fit in the sweep's time.
    :param tick: is told how many rounds of how many are done.
    :return: for each point its place, its setting and its rows.
    """
    found = []
    for point in sweep.points:
        rows = KINDS[sweep.kind](sweep, point, rounds, tick)
        setting = asdict(point.setting)
        found.append({"x": point.x, "label": point.label, "setting": setting, "rows": rows})
        gc.collect()  # a Trainer holds itself, and the next point needs its memory
    return found


def _time(sweep: Sweep, point: Point, rounds: int | None, tick: Tick) -> list[dict]:
    steps = steppers(point.setting, point.variants, passes_only=sweep.passes_only)
    seconds = measure(steps, tick=tick, **_rounds(sweep, rounds))
    return [
        {"variant": v.name, "family": v.family, "limit": v.limit, "seconds": seconds[v.name]} for v in point.variants
    ]


def _precision(sweep: Sweep, point: Point, rounds: int | None, tick: Tick) -> list[dict]:
    rows = _time(sweep, point, rounds, tick)
    return [{**row, "cosines": precision.cosines(row["variant"], point.setting)} for row in rows]


def _overhead(sweep: Sweep, point: Point, rounds: int | None, tick: Tick) -> list[dict]:
    if point.variants:  # the plain step of the real model, by which the differences are divided
        steps = steppers(point.setting, point.variants)
        seconds = measure(steps, rounds=min(rounds or sweep.rounds, 10), tick=tick)
    else:
        seconds = measure(overhead.prepared(point.setting), tick=tick, **_rounds(sweep, rounds))
    return [{"variant": name, "seconds": times} for name, times in seconds.items()]


def _memory(sweep: Sweep, point: Point, rounds: int | None, tick: Tick) -> list[dict]:
    of = (rounds or sweep.rounds) * len(point.variants)
    rows: list[dict] = [{"variant": v.name, "mib": []} for v in point.variants]
    for done in range(of):
        tick(done, of)
        row = rows[done % len(rows)]
        row["mib"].append(memory.peak(row["variant"], point.setting))
    tick(of, of)
    return rows


def _reductions(sweep: Sweep, point: Point, rounds: int | None, tick: Tick) -> list[dict]:
    tick(0, 1)
    rows = reductions.count(point.setting)
    tick(1, 1)
    return rows


def _rounds(sweep: Sweep, rounds: int | None) -> dict[str, Any]:
    if rounds is not None:
        return {"rounds": rounds, "least": rounds}
    return {"rounds": sweep.rounds, "least": sweep.least, "seconds": sweep.seconds}


KINDS: dict[str, Callable[[Sweep, Point, int | None, Tick], list[dict]]] = {
    "time": _time,
    "precision": _precision,
    "overhead": _overhead,
    "memory": _memory,
    "reductions": _reductions,
}
