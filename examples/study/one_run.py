"""
One run of the study, in a process of its own: train, attack, and what came out as a row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from data import Data, load_data
from fastNLP import logger
from models import load_model

from study.attack import accuracy, attack
from study.outcomes import save_outcomes
from study.train import add_methods, train


def load_part(args: argparse.Namespace, test_size: int) -> Data:
    """The data of the study, with so many test texts. Those for validation come after those for the test."""
    data = load_data(args.dataset, args.train_size)
    begin = args.test_size if args.split == "validation" else 0
    held_out = data.test.select(range(min(begin, len(data.test)), min(begin + test_size, len(data.test))))
    if not len(held_out):
        raise ValueError(f"Expected `--test-size` to leave texts for validation, but got {args.test_size}.")
    return replace(data, test=held_out)


def run(method: str, seed: int, args: argparse.Namespace) -> dict[str, float | str]:
    """Train and attack, in a process of its own."""
    logger.setLevel("ERROR")  # several processes write to one terminal, which shows the progress of all
    torch.set_num_threads(args.threads)
    add_methods(args.methods_from)
    data = load_part(args, args.test_size)
    folder = args.models_dir / f"{method.lower().replace(' ', '')}-{seed}"
    measured = train(method, seed, data, args, folder)
    model, tokenizer = load_model(str(folder), data.num_labels)
    model.to(args.device)
    clean = accuracy(model, tokenizer, data, args)
    found = attack(model, tokenizer, data, args, folder / "attacked.csv")
    shares = save_outcomes(args.output_dir, method, seed, found)
    return {"method": method, "seed": seed, "accuracy": clean, **measured, **shares}
