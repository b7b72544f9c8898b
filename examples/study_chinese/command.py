"""
Does it help on Chinese? Train each method with several seeds from scratch, on characters, attack what it has learned by
swapped characters and by homophones, and put the results side by side. Less than an hour for each task on one CPU core.

    python examples/study_chinese --task reviews                       # CNNText on reviews
    python examples/study_chinese --task ner                           # BiLSTM + CRF on the People's Daily
    python examples/study_chinese --task ner --methods "plain, FGM epsilon=3.0" --seeds 2 --output-dir runs/more

Writes `runs.csv`, one row per run, `outcomes/`, what became of each text, and from them `results.md` and
`results.zh-CN.md`. A run that has a row is not run again: stop when you like, start again, add methods or seeds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
from cli import names, one_line_errors, positive
from fastNLP import logger
from rich.progress import track
from study.outcomes import save_outcomes
from study.runs import read_runs
from study.train import callbacks_of

from study_chinese import page
from study_chinese.attack import SLIPS, worst_texts
from study_chinese.tasks import TASKS

METHODS = ["plain", "FGM", "PGD", "R-Drop", "gradient penalty", "FGM + R-Drop"]

#: what the result of a run depends on, for each task
SETTINGS = {
    "reviews": {
        "train_size": 8000,
        "test_size": 3464,
        "max_length": 100,
        "epochs": 4,
        "batch_size": 32,
        "lr": 2e-3,
        "attack_size": 200,
        "candidates": 32,
        "edits": 2,
    },
    "ner": {
        "train_size": 6000,
        "test_size": 2000,
        "max_length": 80,
        "epochs": 6,
        "batch_size": 32,
        "lr": 5e-3,
        "attack_size": 200,
        "candidates": 32,
        "edits": 2,
    },
}


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first
    logger.setLevel("ERROR")  # of many Trainers; a progress bar shows where the study is
    settings = {name: getattr(args, name) or value for name, value in SETTINGS[args.task].items()}
    settings = {"task": args.task, **settings}
    folder = args.output_dir or Path("runs") / f"study-{args.task}"
    with one_line_errors(parser):
        for method in args.methods:
            callbacks_of(method)  # says now what cannot be had, not after hours
        runs = read_runs(folder, settings)
        task = TASKS[args.task](argparse.Namespace(**settings))
    missing = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    missing = [each for each in missing if each not in runs.rows]
    for method, seed in track(missing, description="runs"):
        runs.add(run(task, method, seed, settings, folder))
    command = shlex.join(["python", "examples/study_chinese", *(sys.argv[1:] if argv is None else argv)])
    page.write(runs, task, command)
    print(f"Written to {folder}: runs.csv, results.md and results.zh-CN.md")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=TASKS, required=True)
    add("--methods", type=names, default=METHODS, help="as of the study")
    add("--seeds", type=positive, default=5, help="(default: %(default)s)")
    add("--output-dir", type=Path, help="for the results (default: runs/study-<task>)")
    for name in SETTINGS["ner"]:
        told = " and ".join(f"{settings[name]} for {task}" for task, settings in SETTINGS.items())
        add(f"--{name.replace('_', '-')}", type=float if name == "lr" else positive, help=f"(default: {told})")
    return parser


def run(task, method: str, seed: int, settings: dict, folder: Path) -> dict:
    """Train, attack, and write what became of each text."""
    trainer = task.build(method, seed)
    begin = time.process_time()
    trainer.run(catch_KeyboardInterrupt=False)
    row = {
        "method": method,
        "seed": seed,
        "clean": task.clean(trainer),
        "steps": trainer.global_forward_batches,
        "train_seconds": time.process_time() - begin,
    }
    outcomes = attacked(task, trainer.model, settings)
    row.update(save_outcomes(folder, method, seed, outcomes))
    row["not_attacked"] = sum(each is None for each in outcomes[f"{SLIPS[0]}_1"])
    return row


def attacked(task, model, settings: dict) -> dict[str, list]:
    """The counts of each text, without an attack and after 1, 2, ... edits; ``None`` where none could be tried."""
    found = {"attacked_0": task.counts(model, task.texts)}
    for slip in SLIPS:
        turns = worst_texts(
            task.texts,
            task.tags,
            lambda which, texts: task.losses(model, which, texts),
            slip,
            settings["edits"],
            settings["candidates"],
        )
        for n, texts in enumerate(turns, start=1):
            counts = task.counts(
                model, [old if new is None else new for old, new in zip(task.texts, texts, strict=True)]
            )
            found[f"{slip}_{n}"] = [None if new is None else each for new, each in zip(texts, counts, strict=True)]
    return found
