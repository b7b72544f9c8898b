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

from study.attack import attack
from study.train import train


def load_part(args: argparse.Namespace, test_size: int) -> Data:
    """The data of the study, with so many test texts."""
    data = load_data(args.dataset, args.train_size)
    return replace(data, test=data.test.select(range(min(test_size, len(data.test)))))


def run(method: str, seed: int, args: argparse.Namespace) -> dict[str, float | str]:
    """Train and attack, in a process of its own."""
    logger.setLevel("ERROR")  # several processes write to one terminal, which shows the progress of all
    torch.set_num_threads(args.threads)
    data = load_part(args, args.test_size)
    folder = args.models_dir / f"{method.lower().replace(' ', '')}-{seed}"
    measured = train(method, seed, data, args, folder)
    model, tokenizer = load_model(str(folder), data.num_labels)
    found = attack(model.to(args.device), tokenizer, data, args, folder / "attacked.csv")
    return {"method": method, "seed": seed, **measured, **found}
