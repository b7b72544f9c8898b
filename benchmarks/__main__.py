"""
What training with this package costs: tables here, JSON, figures and a page in docs/benchmarks.

    python -m benchmarks                                 # everything that has not been measured yet: about 15 minutes
    python -m benchmarks --only methods --again          # one sweep, once more
    python -m benchmarks --only vocabulary --rounds 20   # more rounds than fit in its time
    python -m benchmarks --render                        # page and figures again, from the JSON
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fastNLP import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import page, record
from benchmarks.measuring import run
from benchmarks.sweeps import Sweep, sweeps
from benchmarks.tables import of_targets, table
from benchmarks.targets import targets

ROOT = Path(__file__).parents[1]
NEEDS_CPU = ("reductions",)  # counted in gloo processes, the same on every device


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(sweeps())
    parser.add_argument("--only", action="append", metavar="SWEEP", help=f"one of {names}; can be given several times")
    parser.add_argument("--rounds", type=int, help="exactly so many, however long they take")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before")
    parser.add_argument("--render", action="store_true", help="measure nothing; page and figures from the JSON")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs; goes to runs/")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for the first GPU")
    parser.add_argument("--output", type=Path, help="another folder for JSON, figures and page")
    args = parser.parse_args(argv)
    unknown = set(args.only or ()) - sweeps().keys()
    if unknown:
        parser.error(f"Expected `--only` to be one of {names}, but got {', '.join(sorted(unknown))}.")
    if args.rounds is not None and args.rounds < 2:
        parser.error(f"Expected `--rounds` to be at least 2, for there is a spread to show, but got {args.rounds}.")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"Expected `--device` to be there, but got {args.device!r}, and torch sees no GPU. Use cpu.")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    folder = args.output or _folder(args)
    console = Console()
    chosen = _chosen(args)
    if not args.render:
        with _quiet():
            for sweep in chosen.values():
                _measured(sweep, args, folder, console)
    names = list(sweeps())
    records = record.load(folder, names)
    for name, found in records.items():
        if name in chosen:
            console.print(table(found).for_terminal())
    console.print(of_targets(targets(records)).for_terminal())
    page.write(records, folder)
    console.print(f"JSON, figures and pages: {folder}")
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """A hundred Trainers each tell that they have no progress bar."""
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _folder(args: argparse.Namespace) -> Path:
    root = ROOT / ("runs" if args.quick else "docs") / "benchmarks"
    return root if args.device == "cpu" else root / args.device.partition(":")[0]


def _chosen(args: argparse.Namespace) -> dict[str, Sweep]:
    found = sweeps(quick=args.quick, device=args.device)
    return {name: sweep for name, sweep in found.items() if name in (args.only or found)}


def _measured(sweep: Sweep, args: argparse.Namespace, folder: Path, console: Console) -> None:
    if args.device != "cpu" and sweep.name in NEEDS_CPU:
        console.print(f"{sweep.name}: the same on every device, so it is measured with --device cpu alone")
        return
    if not args.again and record.load(folder, [sweep.name]):
        console.print(f"{sweep.name}: measured before; --again measures it once more")
        return
    count = TextColumn("{task.completed:.0f} of {task.total:.0f}")
    columns = (TextColumn("{task.description:12}"), BarColumn(), count, TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        points = progress.add_task(sweep.name, total=len(sweep.points))
        rounds = progress.add_task("  rounds", total=1)

        def tick(done: int, of: int) -> None:
            progress.update(rounds, completed=done, total=of)
            if done == of:
                progress.advance(points)

        found = run(sweep, rounds=args.rounds, tick=tick)
        progress.update(points, completed=len(sweep.points))
    record.save(record.record(sweep, found, command=_command(args), device=args.device), folder)


def _command(args: argparse.Namespace) -> str:
    """How to measure the same again; where the files went is nobody's business."""
    parts = ["python -m benchmarks", *(f"--only {name}" for name in args.only or ())]
    parts += [f"--rounds {args.rounds}"] * (args.rounds is not None) + ["--quick"] * args.quick
    return " ".join(parts + [f"--device {args.device}"] * (args.device != "cpu"))


if __name__ == "__main__":
    begin = time.perf_counter()
    code = main()
    print(f"{time.perf_counter() - begin:.0f} seconds")
    sys.exit(code)
