"""What is measured: the sweeps, each over settings, and for each setting the variants that take turns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import precision, variants
from benchmarks.setting import Setting
from benchmarks.variants import PLAIN, Variant


@dataclass(frozen=True)
class Point:
    """One setting of a sweep: where it stands on the axis, what it is called, and what takes turns there."""

    x: float
    label: str
    setting: Setting
    variants: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """
    What is measured together. Of ``rounds`` those are left out that do not fit in ``seconds``, but never so many that
    fewer than ``least`` are left.
    """

    name: str
    kind: str
    points: tuple[Point, ...]
    rounds: int = 30
    least: int = 5
    seconds: float = 12.0
    passes_only: bool = False


def sweeps(*, quick: bool = False, device: str = "cpu") -> dict[str, Sweep]:
    """All sweeps by name, in the order in which they run."""
    base = replace(QUICK, device=device) if quick else Setting(device=device)
    shallow = replace(base, layers=1 if quick else 2)
    found = [
        methods(base),
        overhead(base, quick),
        memory(base, quick),
        vocabulary(base, quick),
        hidden(shallow, quick),
        tokens(shallow, quick),
        steps(shallow, quick),
        rdrop(shallow, quick),
        every(base),
        fraction(base),
        lower_precision(base),
        reductions(shallow, quick),
    ]
    if quick:
        found = [replace(sweep, rounds=1 if sweep.kind == "memory" else 2, least=2) for sweep in found]
    return {sweep.name: sweep for sweep in found}


QUICK = Setting(batch=2, length=4, vocab=50, hidden=32, layers=1)


def methods(base: Setting) -> Sweep:
    point = Point(0, str(base), base, tuple(variants.headline()))
    return Sweep("methods", "time", (point,), seconds=110)


def every(base: Setting) -> Sweep:
    # the gradient penalty differentiates twice, which fused attention cannot
    setting = replace(base, attention="eager")
    point = Point(0, str(base), setting, tuple(variants.every_method()))
    return Sweep("every", "time", (point,), seconds=45)


def fraction(base: Setting) -> Sweep:
    point = Point(0, str(base), base, tuple(variants.parts()))
    return Sweep("fraction", "time", (point,), seconds=70)


def lower_precision(base: Setting) -> Sweep:
    point = Point(0, str(base), base, tuple(precision.variants()))
    return Sweep("precision", "precision", (point,), seconds=40)


def vocabulary(base: Setting, quick: bool) -> Sweep:
    sizes = (50, 100) if quick else (30_000, 100_000, 300_000, 1_000_000)
    narrow = replace(base, hidden=32 if quick else 256)
    points = tuple(_point(size, f"{size:,}", replace(narrow, vocab=size)) for size in sizes)
    return Sweep("vocabulary", "time", points, passes_only=True)


def hidden(base: Setting, quick: bool) -> Sweep:
    sizes = (32, 64) if quick else (128, 256, 512, 1024)
    points = tuple(_point(size, str(size), replace(base, hidden=size)) for size in sizes)
    return Sweep("hidden", "time", points)


def tokens(base: Setting, quick: bool) -> Sweep:
    shapes = ((2, 4), (2, 8)) if quick else ((8, 16), (16, 32), (32, 64), (64, 128))
    settings = [replace(base, batch=b, length=t, hidden=32 if quick else 256) for b, t in shapes]
    points = tuple(_point(s.tokens, f"{s.batch} x {s.length}", s) for s in settings)
    return Sweep("tokens", "time", points)


def steps(base: Setting, quick: bool) -> Sweep:
    numbers = (1, 2) if quick else (1, 2, 3, 5, 8)
    points = tuple(Point(k, f"K = {k}", base, (PLAIN, *variants.pgd(k), *variants.freelb(k))) for k in numbers)
    return Sweep("steps", "time", points)


def rdrop(base: Setting, quick: bool) -> Sweep:
    shapes = ((8, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128))
    settings = [replace(base, batch=b, length=t) for b, t in (((2, 4), (2, 8)) if quick else shapes)]
    both = (PLAIN, *variants.rdrop(loop=False))
    return Sweep("rdrop", "time", tuple(Point(s.tokens, f"{s.batch} x {s.length}", s, both) for s in settings))


def memory(base: Setting, quick: bool) -> Sweep:
    size = {} if quick else {"vocab": 250_000, "hidden": 256, "layers": 2}
    setting = replace(base, **size)
    chosen = tuple(v for v in variants.headline() if v.name in (MEMORY[:3] if quick else MEMORY))
    point = Point(setting.vocab, str(setting), setting, chosen)
    return Sweep("memory", "memory", (point,), rounds=2, least=1)


MEMORY = ("plain", "FGM", "FGM, textbook", "PGD-3", "PGD-3, textbook")


def reductions(base: Setting, quick: bool) -> Sweep:
    setting = replace(base, device="cpu", **({} if quick else {"vocab": 5000}))
    return Sweep("reductions", "reductions", (Point(0, str(setting), setting),))


def overhead(base: Setting, quick: bool) -> Sweep:
    setting = replace(base, vocab=base.vocab if quick else 1000)
    points = (Point(0, "a model that does next to nothing", setting), Point(1, str(base), base, (PLAIN,)))
    return Sweep("overhead", "overhead", points, rounds=500, seconds=30)


def _point(x: float, label: str, setting: Setting) -> Point:
    return Point(x, label, setting, tuple(variants.attacks()))
