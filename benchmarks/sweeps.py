"""What is measured: the sweeps, each over settings, and for each setting the variants that take turns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import precision, variants
from benchmarks.setting import Setting
from benchmarks.variants import PLAIN, Variant

TEXTBOOK_NOTE = "A textbook loop runs every pass in full, so its own limit is higher: K + 1 for PGD-K."


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
    title: str
    kind: str
    points: tuple[Point, ...]
    axis: str = ""
    note: str = ""
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
    title = "A step of each method beside its textbook loop"
    return Sweep("methods", title, "time", (point,), note=TEXTBOOK_NOTE, seconds=110)


def every(base: Setting) -> Sweep:
    # the gradient penalty differentiates twice, which fused attention cannot
    setting = replace(base, attention="eager")
    point = Point(0, str(base), setting, tuple(variants.every_method()))
    note = (
        'Default arguments, and `attn_implementation="eager"`, which the gradient penalty needs. The limit counts '
        "passes; the gradient penalty's second backward pass goes through the first one as well, and the inner pass of "
        "SAM comes to all weights, so their limits are out of reach."
    )
    return Sweep("every", "Every method of the package", "time", (point,), note=note, seconds=45)


def fraction(base: Setting) -> Sweep:
    point = Point(0, str(base), base, tuple(variants.parts()))
    note = "`fraction`: what the attack needs runs on so many of the examples, and one pass on all of them."
    return Sweep("fraction", "Attacking a part of the batch", "time", (point,), note=note, seconds=70)


def lower_precision(base: Setting) -> Sweep:
    point = Point(0, str(base), base, tuple(precision.variants()))
    note = (
        "`inner_autocast=torch.bfloat16`. The cosines are those of the perturbation after each ascent step to the one "
        "in float32, on a model with fresh weights and dropout off. The time depends on the machine."
    )
    return Sweep("precision", "Inner passes in lower precision", "precision", (point,), note=note, seconds=40)


def vocabulary(base: Setting, quick: bool) -> Sweep:
    sizes = (50, 100) if quick else (30_000, 100_000, 300_000, 1_000_000)
    narrow = replace(base, hidden=32 if quick else 256)
    note = (
        "Forward and backward passes alone, without the optimizer's step and the clearing of gradients. In the plain "
        "step there is what every training has: the dense gradient of the embedding is filled, and added to `.grad` "
        "(fastNLP zeroes gradients in place). Two training passes do that twice, PGD's inner passes never, so PGD may "
        f"fall. Layers of {narrow.hidden}, for the memory that textbook PGD needs at a million words."
    )
    points = tuple(_point(size, f"{size:,}", replace(narrow, vocab=size)) for size in sizes)
    title = "Vocabulary"
    return Sweep("vocabulary", title, "time", points, "words in the vocabulary", note, passes_only=True)


def hidden(base: Setting, quick: bool) -> Sweep:
    sizes = (32, 64) if quick else (128, 256, 512, 1024)
    points = tuple(_point(size, str(size), replace(base, hidden=size)) for size in sizes)
    return Sweep("hidden", "Width of the model", "time", points, "hidden size", _few(base))


def tokens(base: Setting, quick: bool) -> Sweep:
    shapes = ((2, 4), (2, 8)) if quick else ((8, 16), (16, 32), (32, 64), (64, 128))
    settings = [replace(base, batch=b, length=t, hidden=32 if quick else 256) for b, t in shapes]
    points = tuple(_point(s.tokens, f"{s.batch} x {s.length}", s) for s in settings)
    return Sweep("tokens", "Size of the batch", "time", points, "tokens in the batch", _few(settings[0]))


def steps(base: Setting, quick: bool) -> Sweep:
    numbers = (1, 2) if quick else (1, 2, 3, 5, 8)
    points = tuple(Point(k, f"K = {k}", base, (PLAIN, *variants.pgd(k), *variants.freelb(k))) for k in numbers)
    note = f"{TEXTBOOK_NOTE} {_few(base)}"
    return Sweep("steps", "Inner steps", "time", points, "inner steps K", note)


def rdrop(base: Setting, quick: bool) -> Sweep:
    shapes = ((8, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 128))
    settings = [replace(base, batch=b, length=t) for b, t in (((2, 4), (2, 8)) if quick else shapes)]
    both = (PLAIN, *variants.rdrop(loop=False))
    points = tuple(Point(s.tokens, f"{s.batch} x {s.length}", s, both) for s in settings)
    title = "R-Drop: one pass of the doubled batch, or two passes"
    return Sweep("rdrop", title, "time", points, "tokens in the batch", _few(base))


def memory(base: Setting, quick: bool) -> Sweep:
    size = {} if quick else {"vocab": 250_000, "hidden": 256, "layers": 2}
    setting = replace(base, **size)
    how = "what the allocator gave out" if base.device != "cpu" else "resident"
    note = f"The peak of three steps ({how}), in a process of its own for each run."
    chosen = tuple(v for v in variants.headline() if v.name in (MEMORY[:3] if quick else MEMORY))
    point = Point(setting.vocab, str(setting), setting, chosen)
    return Sweep("memory", "Memory added to a plain step", "memory", (point,), note=note, rounds=2, least=1)


MEMORY = ("plain", "FGM", "FGM, textbook", "PGD-3", "PGD-3, textbook")


def reductions(base: Setting, quick: bool) -> Sweep:
    setting = replace(base, device="cpu", **({} if quick else {"vocab": 5000}))
    note = "Two processes (gloo); counted in a hook of DistributedDataParallel, so the numbers are exact."
    point = Point(0, str(setting), setting)
    return Sweep("reductions", "What distributed training sends", "reductions", (point,), note=note)


def overhead(base: Setting, quick: bool) -> Sweep:
    setting = replace(base, vocab=base.vocab if quick else 1000)
    points = (Point(0, "a model that does next to nothing", setting), Point(1, str(base), base, (PLAIN,)))
    note = (
        "What a callback adds to a loop that is written by hand for one model and does the same passes, in the Trainer "
        "as well; for one that is not due, to plain training. Measured on a model that does next to nothing but has "
        "lookups of full size, where microseconds show; then set against a plain step of the real model. In brackets: "
        "95 % intervals of the median."
    )
    return Sweep("overhead", "The callback's own overhead", "overhead", points, note=note, rounds=500, seconds=30)


def _point(x: float, label: str, setting: Setting) -> Point:
    return Point(x, label, setting, tuple(variants.attacks()))


def _few(setting: Setting) -> str:
    layers = f"{setting.layers} layer{'s' * (setting.layers > 1)}"
    return f"{layers} only, so that the largest settings take minutes and not hours."
