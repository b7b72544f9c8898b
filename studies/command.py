"""
Does it help? Train each method with several seeds, attack the trained models, and compare.

    python -m studies encoder                                               # a pretrained encoder: hours on 2 CPU cores
    python -m studies encoder --methods "plain, FGM" --seeds 2 --epochs 1   # smaller
    python -m studies encoder --methods "plain, FGM epsilon=0.5, FGM"       # other arguments
    python -m studies encoder --methods-from my_methods.py                  # and methods of your own
    python -m studies encoder --model bert-base-uncased --dataset glue/sst2 --train-size 70000 --device cuda --jobs 1
    python -m studies reviews                                               # CNNText on Chinese reviews: an hour
    python -m studies ner                                                   # BiLSTM + CRF on Chinese named entities
    python -m studies defaults                                              # FGM's warmup on four models
    python -m studies render docs/study/front                               # the page and figures of a folder, again

Writes `runs.csv`, a row per run, `outcomes.json.gz`, the outcome of each attacked text, and from them `results.md` with
tables and figures. A run that has a row is not run again: stop the study when you like, start it again, add methods or
seeds. The reports of attacked texts are beside the models.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from cli import names, natural, one_line_errors, positive
from fastNLP import logger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track

from fastnlp_adv import __version__
from studies import page
from studies.methods import PLAIN, add_methods, callbacks_of
from studies.runs import Key, Runs, machine, read_runs
from studies.tasks import TASKS, Task, TimedTask

TIMED_ROUNDS = 5


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    with one_line_errors(parser):
        if args.task == "render":
            for folder in args.folders:
                page.write(read_runs(folder))
            return
        runs = study(args, shlex.join(["python", "-m", "studies", *(sys.argv[1:] if argv is None else argv)]))
    if not any(row["learned"] for row in runs.rows.values()):
        print("No method learned anything: more training texts, epochs or another learning rate may help.")
    print(f"Written to {args.output_dir}: runs.csv and results.md")


def build_parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__, formatter_class=plain)
    tasks = parser.add_subparsers(dest="task", required=True, metavar=f"{{{','.join(TASKS)},render}}")
    tasks.add_parser("render").add_argument("folders", type=Path, nargs="+", help="folders of finished runs")
    for name, task in TASKS.items():
        add = tasks.add_parser(name, description=sys.modules[task.__module__].__doc__).add_argument
        several = "put together as in 'PGD epsilon=0.5 + R-Drop'"
        add("--methods", type=names, help=f"{several} (default: {', '.join(task.methods)})")
        add("--methods-from", type=Path, help="a Python file with callbacks; DropAttackCallback is named DropAttack")
        if len(task.models) > 1:
            add("--models", type=names, default=[*task.models], help=f"(default: {', '.join(task.models)})")
        add("--seeds", type=positive, default=5, help="(default: %(default)s)")
        add("--jobs", type=positive, default=2, help="processes, each with a run at a time (default: %(default)s)")
        add("--threads", type=positive, default=1, help="of each process (default: %(default)s)")
        add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(here: %(default)s)")
        add("--output-dir", type=Path, default=Path("runs") / f"study-{name}", help="(default: %(default)s)")
        add("--models-dir", type=Path, help="for trained models (default: models in --output-dir)")
        for setting, (default, meaning) in task.settings.items():
            is_list = isinstance(default, list)
            kind = type(default[0] if is_list else default)
            kind = kind if kind is not int else natural if "0 for" in meaning else positive
            options = {"type": kind, "nargs": "+" if is_list else None, "choices": task.choices.get(setting)}
            add(f"--{setting.replace('_', '-')}", default=default, help=f"{meaning} (default: %(default)s)", **options)
    return parser


def study(args: argparse.Namespace, command: str) -> Runs:
    """Complete a study and write its page."""
    kind = TASKS[args.task]
    args.models_dir = args.models_dir or args.output_dir / "models"
    own = add_methods(args.methods_from)
    methods = args.methods or [*kind.methods, *own]
    models = getattr(args, "models", [*kind.models])
    for method in methods:
        callbacks_of(method)  # raises now, not in the last of the processes
    if unknown := [model for model in models if model not in kind.models]:
        raise ValueError(f"Expected `--models` to be of {', '.join(kind.models)}, but got {unknown[0]}.")
    runs = read_runs(args.output_dir, args.task, {name: getattr(args, name) for name in kind.settings})
    task = begin(args)  # loads the data, before anything is written
    wanted = [(model, method, seed) for seed in range(args.seeds) for model in models for method in methods]
    missing = [key for key in wanted if key not in runs.rows]
    runs.about.update(command=command, machine=machine())
    complete(runs, missing, args)
    untimed = [method for method in runs.methods if not runs.cost(method)]
    if isinstance(task, TimedTask) and untimed:
        runs.rounds += take_turns([*dict.fromkeys([PLAIN, *untimed])], task)
    runs.save()
    page.write(runs)
    return runs


def complete(runs: Runs, missing: list[Key], args: argparse.Namespace) -> None:
    """Run what is missing, and write each row at once."""
    counter = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    progress = Progress(TextColumn("runs"), BarColumn(), counter, TimeElapsedColumn())
    with progress:
        bar = progress.add_task("runs", total=len(missing))
        for row, outcomes in _finished(missing, args):
            runs.add(row, outcomes)
            named = ", ".join(filter(None, (row.get("model"), row["method"], f"seed {row['seed']}")))
            progress.console.print(f"{named}: clean {row['clean']:.3f}{'' if row['learned'] else ', learned nothing'}")
            progress.advance(bar)


def _finished(missing: list[Key], args: argparse.Namespace) -> Iterator[tuple[dict, dict]]:
    """Yield each run as it ends; in this process if there is to be one job."""
    if args.jobs == 1 or not missing:
        yield from itertools.starmap(run, missing)
        return
    # Processes start afresh: a fork would inherit the threads of this one in the middle of their work.
    with ProcessPoolExecutor(args.jobs, get_context("spawn"), begin, (args,)) as pool:
        waiting = [pool.submit(run, *key) for key in missing]
        try:
            for finished in as_completed(waiting):
                yield finished.result()
        except BaseException:
            for each in waiting:
                each.cancel()  # running ones finish, or Ctrl-C has reached them, too
            raise


#: of this process; one process has one study
_task: Task


def begin(args: argparse.Namespace) -> Task:
    """Load the data of a study, once in each process."""
    global _task
    logger.setLevel("ERROR")  # several processes write to one terminal, which shows the progress of all
    torch.set_num_threads(args.threads)
    add_methods(args.methods_from)
    _task = TASKS[args.task](args)
    return _task


def run(model: str, method: str, seed: int) -> tuple[dict, dict]:
    """Train and attack: a row, and the outcomes of the attacked texts."""
    measured, outcomes = _task.run(model, method, seed)
    named = {"model": model} if model else {}
    return {**named, "method": method, "seed": seed, "version": __version__, **measured}, outcomes


def take_turns(methods: list[str], task: TimedTask) -> list[dict[str, float]]:
    """Time steps when no run is under way, all methods in each round: what slows a whole round drops out of ratios."""
    rounds: list[dict[str, float]] = [{} for _ in range(TIMED_ROUNDS)]
    for times, method in track([*itertools.product(rounds, methods)], description="time of a step"):
        times[method] = task.step_seconds(method)
    return rounds
