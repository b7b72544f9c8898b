"""
With which defaults does `FGMCallback(epsilon=1.0)` learn, whatever the model? Train four models with several seeds, and
put clean and robust accuracy side by side. Minutes for each model on one CPU core.

    python examples/study_defaults                                                 # all models, five seeds
    python examples/study_defaults --tasks cnn --methods "plain, FGM warmup=0.5" --seeds 2

Writes `runs.csv`, one row per run, in a folder per model, and from all of them `results.md` and `results.zh-CN.md`. A
run that has a row is not run again: stop when you like, start again, add methods or seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from cli import one_line_errors, positive
from data import Data, load_data
from datasets import concatenate_datasets
from fastNLP import Callback, logger, prepare_torch_dataloader
from rich.progress import track
from study.runs import Runs, read_runs
from study.train import callbacks_of
from train_text_classification import build

from fastnlp_adv import robust_evaluate, schedule
from study_defaults import page
from study_defaults.tasks import TASKS

METHODS = ["plain", "FGM", "FGM warmup=1.0", "FGM warmup=auto"]


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the smaller models would only wait for a second one
    logger.setLevel("ERROR")  # of many Trainers; a progress bar shows where the study is
    with one_line_errors(parser):
        for method in args.methods:
            callbacks_of(method)  # says now what cannot be had, not after hours
        found = {name: read_runs(args.output_dir / name, _settings(name, args)) for name in args.tasks}
    wanted = [(name, method, seed) for seed in range(args.seeds) for name in args.tasks for method in args.methods]
    missing = [(name, method, seed) for name, method, seed in wanted if (method, seed) not in found[name].rows]
    for name, method, seed in track(missing, description="runs"):
        found[name].add(run(name, method, seed, found[name]))
    command = shlex.join(["python", "examples/study_defaults", *(sys.argv[1:] if argv is None else argv)])
    page.write(found, args.output_dir, command)
    print(f"Written to {args.output_dir}: results.md, results.zh-CN.md, and runs.csv in a folder per model")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tasks", type=_names, default=[*TASKS], help=f"of {', '.join(TASKS)}, which are the default")
    add(
        "--methods",
        type=_names,
        default=METHODS,
        help='as of the study (default: "plain, FGM, FGM warmup=1.0, FGM warmup=auto")',
    )
    add("--seeds", type=positive, default=5, help="(default: %(default)s)")
    add("--dataset", default="snippets", help="see the other examples (default: %(default)s)")
    add(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="validation: other texts, to choose arguments on",
    )
    add("--fall", type=float, help="relative fall of the loss at which `warmup=auto` is at its whole epsilon")
    add("--train-size", type=positive, help="texts to train on; as the model has it if not given")
    add("--attack-size", type=positive, help="test texts to attack; as the model has it if not given")
    add("--output-dir", type=Path, default=Path("runs/study-defaults"), help="(default: %(default)s)")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _settings(name: str, args: argparse.Namespace) -> dict:
    given = {key: getattr(args, key) for key in ("train_size", "attack_size") if getattr(args, key)}
    if name not in TASKS:
        raise ValueError(f"Expected `--tasks` to be of {', '.join(TASKS)}, but got {name}.")
    fall = {} if args.fall is None else {"fall": args.fall}
    return {"task": name, "dataset": args.dataset, "split": args.split, **TASKS[name].settings, **given, **fall}


class Losses(Callback):
    """Takes the loss of each batch, to tell what a training began and ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def on_before_backward(self, trainer, outputs):
        self.seen.append(outputs["loss"].detach())

    def mean(self, part: slice) -> float:
        return float(torch.stack(self.seen[part]).mean())


def load_part(args: argparse.Namespace) -> Data:
    """The texts of a run. Those for validation are in neither the training nor the test texts of the study."""
    data = load_data(args.dataset)
    train, rest = (data.train.select(part) for part in _parts(len(data.train), args.train_size))
    test, others = (data.test.select(part) for part in _parts(len(data.test), args.test_size))
    if args.split == "validation":
        test = concatenate_datasets([rest, others])
        test = test.select(_parts(len(test), args.test_size)[0])
    return replace(data, train=train, test=test)


def _parts(length: int, size: int) -> tuple[list[int], list[int]]:
    rows = [*range(length)]
    return rows[:size], rows[size:]


def run(name: str, method: str, seed: int, runs: Runs) -> dict:
    """Train, and measure clean and robust accuracy."""
    args = argparse.Namespace(**runs.settings, seed=seed, device="cpu")
    schedule.FALL = getattr(args, "fall", schedule.FALL)
    data = load_part(args)
    torch.manual_seed(seed)
    model, bundle = TASKS[name].make(data, args)
    losses = Losses()
    trainer = build(
        model, bundle, [*callbacks_of(method), losses], args, evaluate_every=-args.epochs - 1, progress_bar=None
    )
    trainer.run(catch_KeyboardInterrupt=False)
    attacked = prepare_torch_dataloader(bundle.get_dataset("test")[: args.attack_size], batch_size=args.batch_size)
    left = robust_evaluate(
        model,
        attacked,
        epsilons=[args.radius],
        steps=args.attack_steps,
        restarts=1,
        step=lambda batch: model.train_step(**batch),
    )
    tenth = max(1, len(losses.seen) // 10)
    return {
        "method": method,
        "seed": seed,
        "clean": trainer.evaluator.run()["acc#accuracy"],
        "attacked_0": left[0.0]["accuracy"],
        "robust": left[args.radius]["accuracy"],
        "first_loss": losses.mean(slice(tenth)),
        "last_loss": losses.mean(slice(-tenth, None)),
        "steps": len(losses.seen),
    }
