"""
One training of the study: a method, with a seed. And what a step of each method takes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import report
import torch
from data import Data
from fastNLP import Callback
from models import load_model
from train_text_classification import TextClassifier, build, tokenize

from fastnlp_adv import callbacks

PLAIN = "plain"  # what the others are compared with
WHOLE = "FGM"  # and what a cheaper method is compared with
TIMED_STEPS = 8  # a multiple of 4, for `every=4`

#: by name; :func:`add_methods` adds others
CALLBACKS: dict[str, type[Callback]] = {entry.title: entry.callback for entry in callbacks.METHODS.values()}

#: what is studied unless something else is asked for; a new method joins when its runs are committed
METHODS = [
    PLAIN,
    WHOLE,
    *("ATTA", "AWP", "FGSM", "FreeLB", "PGD", "TA-VAT"),
    *("gradient penalty", "R3F", "R-Drop", "SMART", "VAT"),
    f"{WHOLE} + R-Drop",
]


def add_methods(path: Path | None) -> list[str]:
    """
    Add the callbacks that a Python file defines to :data:`CALLBACKS`.

    :param path: the file; ``None`` for none.
    :return: their names, those of their methods.
    :raises ValueError: the file has no callback, or one with the name of a method of the package.
    """
    if path is None:
        return []
    spec = importlib.util.spec_from_file_location(f"methods_from_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"Expected `--methods-from` to be a Python file, but got {path}.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {}
    for each in vars(module).values():
        if getattr(each, "__module__", None) == spec.name and hasattr(each, "method_class"):
            found[each.method_class.__name__] = each
    if not found:
        raise ValueError(f"Expected `--methods-from` to be a file with callbacks of methods, but got {path} with none.")
    if taken := sorted(callbacks.METHODS.keys() & found):
        raise ValueError(f"Expected new names in `--methods-from`, but got {', '.join(taken)}. Rename the method.")
    CALLBACKS.update(found)
    return list(found)


def callbacks_of(method: str) -> list[Callback]:
    """
    :param method: :data:`PLAIN`, or names of :data:`CALLBACKS` with `` + `` between; arguments that are not to be at
        their defaults stand behind a name.
    :return: new callbacks.
    :raises ValueError: there is no such method, or it does not take these arguments.

    Example::

        >>> [type(callback).__name__ for callback in callbacks_of("FGM epsilon=0.5 + R-Drop")]
        ['FGMCallback', 'RDropCallback']
    """
    return [] if method == PLAIN else [_callback(part) for part in method.split(" + ")]


def _callback(text: str) -> Callback:
    words = text.split()
    name = " ".join(word for word in words if "=" not in word)
    if name not in CALLBACKS:
        raise ValueError(f"Expected `--methods` to be of {PLAIN}, {', '.join(CALLBACKS)}, but got {name}.")
    arguments = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        return CALLBACKS[name](**{key: _value(value) for key, value in arguments.items()})
    except TypeError as reason:
        raise ValueError(f"Expected arguments of {CALLBACKS[name].__name__}, but got {text}: {reason}.") from None


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def train(method: str, seed: int, data: Data, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """
    Train, and keep model, tokenizer and what was measured in a folder; if they are there already, read them.

    :param method: see :func:`callbacks_of`.
    :param seed: of head, dropout and batches.
    :param data: what to train on.
    :param args: the settings of the study.
    :param folder: where to.
    :return: ``steps`` and ``train_seconds``.
    """
    measured = folder / "training.json"
    if measured.is_file():
        return json.loads(measured.read_text(encoding="utf-8"))
    trainer, tokenizer = trainer_for(method, seed, data, args)
    begin = time.perf_counter()
    trainer.run(catch_KeyboardInterrupt=False)
    seconds = time.perf_counter() - begin
    found = {"steps": trainer.global_forward_batches, "train_seconds": seconds}
    trainer.model.backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    measured.write_text(json.dumps(found), encoding="utf-8")  # last: it says that all is there
    return found


def step_seconds(method: str, data: Data, args: argparse.Namespace) -> float:
    """
    :param method: see :func:`callbacks_of`.
    :param data: its first texts are trained on.
    :param args: the settings of the study.
    :return: the mean time of a step of the second epoch: the first warms up, and is plain training under ATTA.
    """
    few = replace(data, train=data.train.select(range(min(TIMED_STEPS * args.batch_size, len(data.train)))))
    timer = report.StepTimer(args.device)
    trainer, _ = trainer_for(method, 0, few, argparse.Namespace(**{**vars(args), "epochs": 2}), timer)
    trainer.run(catch_KeyboardInterrupt=False)
    return statistics.mean(timer.seconds[len(timer.seconds) // 2 :])


def trainer_for(method: str, seed: int, data: Data, args: argparse.Namespace, *callbacks: Callback) -> tuple:
    """
    :param method: see :func:`callbacks_of`.
    :param seed: of head, dropout and batches.
    :param data: what to train on.
    :param args: the settings of the study.
    :param callbacks: beside those of the method.
    :return: the Trainer, and the tokenizer of its model.
    """
    torch.manual_seed(seed)
    backbone, tokenizer = load_model(args.model, data.num_labels, fused="gradient penalty" not in method)
    trainer = build(
        TextClassifier(backbone),
        tokenize(data, tokenizer, args.max_length),
        [*callbacks_of(method), *callbacks],
        argparse.Namespace(**{**vars(args), "seed": seed}),
        evaluate_every=-args.epochs - 1,  # at the end
        progress_bar=None,
    )
    return trainer, tokenizer
