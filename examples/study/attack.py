"""
What is left of a trained model's accuracy under attack: on the word vectors, by swapped words and by typos.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from data import Data
from torch import Tensor, nn

from fastnlp_adv import HotFlip, Typos, robust_evaluate
from fastnlp_adv.robustness import Attacked
from study.outcomes import Counts


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: Any, data: Data, args: argparse.Namespace) -> float:
    """
    :param model: the trained model.
    :param tokenizer: its tokenizer.
    :param data: holds the texts.
    :param args: the settings of the study.
    :return: the share of all test texts that the model is right on.
    """
    right = 0
    for batch in _batches(
        tokenizer, sorted(zip(data.test["text"], data.test["label"], strict=True), key=_length), args
    ):
        batch = {name: value.to(args.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(data.test)


def attack(
    model: nn.Module, tokenizer: Any, data: Data, args: argparse.Namespace, file: Path
) -> dict[str, list[Counts]]:
    """
    What becomes of the first ``args.attack_size`` test texts, which are the same for all runs, under each attack.

    :param model: the trained model.
    :param tokenizer: its tokenizer.
    :param data: holds the texts.
    :param args: the settings of the study.
    :param file: where to write the attacked texts, for people to read.
    :return: for each text whether it is right: ``attacked_0`` (without an attack), ``attacked_<epsilon>`` for each
        radius, ``hotflip_<n>`` and ``typos_<n>`` for each number of words that may be changed.
    """
    rows = data.test.select(range(min(args.attack_size, len(data.test))))
    texts, labels = list(rows["text"]), list(rows["label"])
    curve = under_perturbations(model, tokenizer, texts, labels, args)
    options = {"batch_size": 2 * args.batch_size, "max_length": args.max_length}
    found = {}
    if args.max_flips:
        found["hotflip"] = HotFlip(model, tokenizer, max_flips=args.max_flips, **options).attack(texts, labels)
    if args.max_typos:
        found["typos"] = Typos(model, tokenizer, max_typos=args.max_typos, **options).attack(texts, labels)
    save_texts(found, file)
    return {
        **{f"attacked_{epsilon:g}": [[float(each), 1.0] for each in right] for epsilon, right in curve.items()},
        **by_changes("hotflip", found.get("hotflip", ()), args.max_flips),
        **by_changes("typos", found.get("typos", ()), args.max_typos),
    }


def by_changes(name: str, results: Sequence[Attacked], most: int) -> dict[str, list[Counts]]:
    """
    What is right by how many words may be changed. The attacks are greedy: with a lower limit they go the same way, and
    stop there.

    :param name: of the attack.
    :param results: what it returned.
    :param most: its limit.
    :return: for each limit up to that and each text whether it is still right; ``None`` for a text that nothing could
        be tried on.
    """
    return {f"{name}_{n}": [_still_right(each, n) for each in results] for n in range(1, most + 1)}


def _still_right(result: Attacked, limit: int) -> Counts:
    if result.not_attacked:
        return None
    return [float(result.was_right and not (result.fooled and len(result.changes) <= limit)), 1.0]


def save_texts(found: Mapping[str, Sequence[Attacked]], file: Path) -> None:
    """
    Write a table of the texts that the attacks changed.

    :param found: what each attack returned.
    :param file: the CSV file to write.
    """
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["attack", "label", "prediction", "original", "attacked"])
        for name, results in found.items():
            rows = ([name, each.label, each.prediction, each.original, each.text] for each in results if each.changes)
            writer.writerows(rows)


def under_perturbations(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], labels: Sequence[int], args: argparse.Namespace
) -> dict[float, list[bool]]:
    """
    Whether each text is predicted right wherever the attack looks in a ball, for each radius.

    What was wrong once stays wrong, so neither another start nor a larger ball looks at it again.

    :param model: the trained model.
    :param tokenizer: its tokenizer.
    :param texts: the texts.
    :param labels: their labels.
    :param args: the settings of the study: ``epsilons`` in units of the mean norm of the word vectors, ``attack_steps``
        and ``restarts``.
    :return: the answers for 0 (no attack) and each radius, in the order of the texts.
    """
    left = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length share a batch
    found: dict[float, list[bool]] = {}
    for epsilon in sorted(args.epsilons):
        for start in range(args.restarts):
            right: dict[float, list[bool]] = {0.0: [], epsilon: []}

            def note(radius: float, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], right=right) -> None:
                right[radius] += (outputs["logits"].argmax(-1) == batch["labels"]).tolist()

            batches = list(_batches(tokenizer, [(texts[i], labels[i]) for i in left], args))
            if batches:
                options = {"epsilons": (epsilon,), "steps": args.attack_steps, "restarts": 1, "seed": start}
                robust_evaluate(model, batches, update=note, **options)
            if 0.0 not in found:
                found[0.0] = _in_order(
                    len(texts), [i for i, is_right in zip(left, right[0.0], strict=True) if is_right]
                )
            left = [i for i, is_right in zip(left, right[epsilon], strict=True) if is_right]
        found[epsilon] = _in_order(len(texts), left)
    return found


def _length(row: tuple[str, int]) -> int:
    return len(row[0])


def _in_order(count: int, chosen: Sequence[int]) -> list[bool]:
    members = set(chosen)
    return [i in members for i in range(count)]


def _batches(tokenizer: Any, rows: list[tuple[str, int]], args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    for begin in range(0, len(rows), args.batch_size):
        texts, labels = zip(*rows[begin : begin + args.batch_size], strict=True)
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=args.max_length, return_tensors="pt")
        yield {**{name: encoded[name] for name in ("input_ids", "attention_mask")}, "labels": torch.tensor(labels)}
