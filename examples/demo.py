"""
Fine-tune a small pretrained encoder on movie reviews three times, plainly, with FGM and with R-Drop, and compare.

    python demo.py
    python demo.py --train-size 5000 --epochs 2 --seed 1
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

# Before torch starts its threads: threads that spin while they wait stall one another on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import report
import torch
from cli import add_arguments, one_line_errors
from data import load_data
from rich.console import Console
from train_text_classification import run

METHODS = {"none": "plain", "fgm": "FGM", "rdrop": "R-Drop"}


def main(argv: list[str] | None = None) -> list[report.Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(train_size=1600, max_length=64, epochs=1, lr=2e-4, epsilon=1.0, output_dir=Path("runs/demo"))
    args = parser.parse_args(argv)
    with one_line_errors(parser):
        data = load_data(args.dataset, args.train_size)
    console = Console()
    console.print(
        f"{args.model} on {data.source}: {len(data.train)} texts to train on, {len(data.test)} to test on, at most "
        f"{args.max_length} tokens, batch size {args.batch_size}, epochs {args.epochs}, learning rate {args.lr}, "
        f"epsilon {args.epsilon}, KL weight {args.kl_weight}, seed {args.seed}, {args.device}, "
        f"{torch.get_num_threads()} threads"
    )
    results = []
    for method, name in METHODS.items():
        console.rule(name)
        folder = args.output_dir / name.lower()
        result = run(method, data, args, folder, parser, evaluate_every=-args.epochs - 1)  # at the end, not every epoch
        results.append(replace(result, method=name))
    report.print_table(results, title=f"{len(data.train)} texts, {results[0].steps} steps", console=console)
    report.save_table(results, args.output_dir / "results.csv")
    folders = ", ".join(name.lower() for name in METHODS.values())
    console.print(f"Saved in {args.output_dir}: the table as results.csv, models and metrics in {folders}")
    return results


if __name__ == "__main__":
    main()
