"""
Command line arguments of the example scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from fastNLP import RawTextCallback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of a training run.

    :param parser: the parser to add them to.
    """
    add = parser.add_argument
    add("--model", default="minilm", help="minilm, a folder, or a model on the Hugging Face hub (bert-base-uncased)")
    add("--dataset", default="snippets", help="snippets, a .csv or .tsv file, or a data set on the hub (glue/sst2)")
    add("--train-size", type=positive, help="number of training texts; None: all (default: %(default)s)")
    add("--max-length", type=positive, default=128, help="maximum tokens per text (default: %(default)s)")
    add("--epochs", type=positive, default=2, help="(default: %(default)s)")
    add("--batch-size", type=positive, default=16, help="(default: %(default)s)")
    add("--lr", type=float, default=5e-5, help="learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed of head, dropout and batches (default: %(default)s)")
    add("--epsilon", type=float, help="size of the perturbation; None: the attack's default (default: %(default)s)")
    add("--kl-weight", type=float, default=1.0, help="weight of R-Drop's divergence (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(here: %(default)s)")
    add("--output-dir", type=Path, default=Path("runs"), help="folder for models and metrics (default: %(default)s)")


def positive(text: str) -> int:
    """
    :param text: an argument as typed.
    :return: the whole number that it names.
    """
    return _whole(text, 1)


def natural(text: str) -> int:
    """
    :param text: an argument as typed.
    :return: the whole number that it names, which may be 0.
    """
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, but got {text!r}")
    return int(text)


def names(text: str) -> list[str]:
    """
    :param text: an argument as typed: names, with commas between them.
    :return: the names.
    """
    return [name.strip() for name in text.split(",")]


def check_methods(chosen: list[str], known: Collection[str]) -> None:
    """
    :param chosen: the names given to ``--methods``.
    :param known: the names that exist.
    :raises ValueError: a name does not exist.
    """
    if not set(chosen) <= set(known):
        raise ValueError(f"Expected `--methods` to be of {', '.join(known)}, but got {', '.join(chosen)}.")


def progress_bar(every: int = 20) -> str | RawTextCallback:
    """
    :param every: batches between two lines outside a terminal.
    :return: fastNLP's progress bar in a terminal, lines elsewhere.
    """
    return "auto" if sys.stdin.isatty() else RawTextCallback(print_every=every)


@contextlib.contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """
    End the program with one line and status 2 if an argument names something that does not exist.

    :param parser: gives the program's name.
    """
    try:
        yield
    except (OSError, ValueError) as reason:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(reason).split())}\n")
