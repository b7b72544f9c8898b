"""
Does it help? Train each method with several seeds, attack what it has learned, and put the results side by side.

    python examples/study                                                  # small: hours on 2 CPU cores
    python examples/study --methods "plain, FGM" --seeds 2 --epochs 1      # smaller
    python examples/study --methods "plain, FGM epsilon=0.5, FGM"          # other arguments
    python examples/study --methods-from my_methods.py                     # and methods of your own
    python examples/study --model bert-base-uncased --dataset glue/sst2 --train-size 70000 --device cuda --jobs 1

Writes `runs.csv`, a row per run, and from it `results.md` and `results.zh-CN.md` with tables and figures. A run that
has a row is not run again: stop the study when you like, start it again, add methods or seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from cli import names, natural, one_line_errors, positive
from data import load_data
from fastNLP import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track

from study import page
from study.one_run import load_part, run
from study.runs import Runs, read_runs
from study.train import METHODS, add_methods, callbacks_of, step_seconds

TIMED_ROUNDS = 5

#: what the result of a run depends on, and how it is typed
SETTINGS = {
    "model": ("minilm", "minilm, a folder, or a model on the Hugging Face hub"),
    "dataset": ("snippets", "snippets, a .csv or .tsv file, or a data set on the hub"),
    "train_size": (1000, "texts to train on"),
    "test_size": (1000, "texts for the clean accuracy"),
    "split": ("test", "test, or validation: other texts, to choose arguments on"),
    "max_length": (64, "tokens per text at most"),
    "epochs": (3, ""),
    "batch_size": (16, ""),
    "lr": (1e-4, "learning rate"),
    "epsilons": ([0.1, 0.2, 0.4], "radii of the attack on the word vectors, in units of their mean norm"),
    "attack_size": (50, "test texts to attack"),
    "attack_steps": (20, "ascent steps from each start"),
    "restarts": (3, "starts for each radius"),
    "max_flips": (3, "words that HotFlip may swap in a text, 0 for no such attack"),
    "max_typos": (2, "words that may get a typo in a text, 0 for no such attack"),
}
CHOICES = {"split": ("test", "validation")}


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    logger.setLevel("ERROR")  # of many Trainers; progress bars show where the study is
    with one_line_errors(parser):
        own = add_methods(args.methods_from)
        args.methods = args.methods or [*METHODS, *own]
        for method in args.methods:
            callbacks_of(method)  # says now what cannot be had, not in the last of the processes
        runs = read_runs(args.output_dir, {name: getattr(args, name) for name in SETTINGS})
        load_data(args.dataset, 1)  # fetches once what the processes would fetch each
        wanted = [(method, seed) for seed in range(args.seeds) for method in args.methods]
        complete(runs, [each for each in wanted if each not in runs.rows], args)
        if runs.step_seconds.keys() != set(runs.methods):
            runs.time(take_turns(runs.methods, args))
        command = shlex.join(["python", "examples/study", *(sys.argv[1:] if argv is None else argv)])
        page.write(runs, args.output_dir, command)
    Console().print(f"Written to {args.output_dir}: runs.csv, results.md, results.zh-CN.md and the figures")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    told = (
        f"of {', '.join(METHODS)}, which are the default with those of `--methods-from`; others, like "
        "'PGD epsilon=0.5 + R-Drop', are put together so"
    )
    add("--methods", type=names, help=told)
    add("--methods-from", type=Path, help="a Python file with callbacks; DropAttackCallback is the method DropAttack")
    add("--seeds", type=positive, default=5, help="(default: %(default)s)")
    add("--jobs", type=positive, default=2, help="runs at a time, each in a process of its own (default: %(default)s)")
    add("--threads", type=positive, default=1, help="of each process (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(here: %(default)s)")
    add("--output-dir", type=Path, default=Path("runs/study"), help="for table and figures (default: %(default)s)")
    add("--models-dir", type=Path, default=Path("runs/study/models"), help="for the models (default: %(default)s)")
    for name, (default, meaning) in SETTINGS.items():
        several = isinstance(default, list)
        kind = type(default[0] if several else default)
        if kind is int:
            kind = natural if name in ("max_flips", "max_typos") else positive
        option = f"--{name.replace('_', '-')}"
        meaning = f"{meaning} (default: %(default)s)"
        nargs, choices = "+" if several else None, CHOICES.get(name)
        add(option, type=kind, default=default, nargs=nargs, choices=choices, help=meaning)
    return parser


def complete(runs: Runs, missing: list[tuple[str, int]], args: argparse.Namespace) -> None:
    """Run what is missing, and write each row at once."""
    if not missing:
        return
    counter = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    # A process each, started afresh: a fork would inherit the threads of this one in the middle of whatever they do.
    progress = Progress(TextColumn("runs"), BarColumn(), counter, TimeElapsedColumn())
    pool = ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"))
    with progress, pool:
        bar = progress.add_task("runs", total=len(missing))
        waiting: dict[Future, tuple[str, int]] = {pool.submit(run, *each, args): each for each in missing}
        try:
            for finished in as_completed(waiting):
                method, seed = waiting[finished]
                row = finished.result()
                runs.add(row)
                left = row[f"attacked_{min(args.epsilons):g}"]
                progress.console.print(f"{method}, seed {seed}: accuracy {row['accuracy']:.3f}, attacked {left:.3f}")
                progress.advance(bar)
        except BaseException:
            for each in waiting:
                each.cancel()  # what has begun is finished, or Ctrl-C has reached it, too
            raise


def take_turns(methods: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Time steps when no run is under way, all methods in each round: what slows a whole round drops out of ratios."""
    torch.set_num_threads(args.threads)
    data = load_part(args, test_size=1)
    found: dict[str, list[float]] = {method: [] for method in methods}
    for method in track([*methods] * TIMED_ROUNDS, description="time of a step"):
        found[method].append(step_seconds(method, data, args))
    return found
