"""
A pretrained encoder on texts with labels, attacked on its word vectors, by swapped words and by typos.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from fastNLP import Callback, Trainer
from models import load_model
from torch import Tensor, nn
from train_text_classification import TextClassifier, build, tokenize

from fastnlp_adv import HotFlip, Typos, robust_evaluate, write_report
from fastnlp_adv.robustness import Attacked
from studies.methods import PLAIN, WHOLE, callbacks_of
from studies.runs import Counts
from studies.tasks.base import Outcomes, TimedTask, first, learned, load_part, majority


class Encoder(TimedTask):
    title = "Results"
    settings: ClassVar = {
        "model": ("minilm", "minilm, a folder, or a model on the Hugging Face hub"),
        "dataset": ("snippets", "snippets, a .csv or .tsv file, or a data set on the hub"),
        "train_size": (1000, "texts to train on"),
        "test_size": (1000, "texts for the clean accuracy"),
        "split": ("test", "test, or validation: other texts, to choose arguments on"),
        "max_length": (64, "tokens per text at most"),
        "epochs": (3, "passes over the training texts"),
        "batch_size": (16, "texts in a batch"),
        "lr": (1e-4, "learning rate"),
        "epsilons": ([0.1, 0.2, 0.4], "radii of the attack on the word vectors, in units of their mean norm"),
        "attack_size": (50, "test texts to attack"),
        "attack_steps": (20, "ascent steps from each start"),
        "restarts": (3, "starts for each radius"),
        "max_flips": (3, "words that HotFlip may swap in a text, 0 for no such attack"),
        "max_typos": (2, "words that may get a typo in a text, 0 for no such attack"),
    }
    choices: ClassVar = {"split": ("test", "validation")}
    #: a new method joins when its runs are committed
    methods: ClassVar = [
        *(PLAIN, WHOLE, "ATTA", "AWP", "FGSM", "FreeLB", "PGD", "TA-VAT"),
        *("gradient penalty", "R3F", "R-Drop", "SMART", "VAT", f"{WHOLE} + R-Drop"),
    ]

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.data = load_part(args.dataset, args.train_size, args.test_size, args.split)

    @staticmethod
    def columns(settings: dict) -> dict[str, str]:
        most = {"flip": settings["max_flips"], "typo": settings["max_typos"]}
        names = {"flip": "hotflip", "typo": "typos"}
        texts = {
            f"{names[edit]}_{n}": f"{n} {edit}{'s' * (n > 1)}"
            for edit, limit in most.items()
            for n in sorted({1, limit})
            if limit
        }
        radii = {f"attacked_{radius:g}": f"ε = {radius:g}" for radius in sorted([0.0, *settings["epsilons"]])}
        return {"clean": "clean", **radii, **texts}

    @staticmethod
    def headline(settings: dict) -> str:
        return f"attacked_{min(settings['epsilons']):g}"

    @staticmethod
    def described(settings: dict) -> str:
        return (
            "`{model}` on {train_size} texts of `{dataset}`, {epochs} epochs, batch size {batch_size}, learning rate "
            "{lr:g}, at most {max_length} tokens. Clean accuracy is over {test_size} test texts, accuracy under attack "
            "over the first {attack_size}. ε is the radius (l2, per text) of an attack on the word vectors, in units "
            "of their mean norm: {attack_steps} steps from each of {restarts} starts; ε = 0 is no attack, on the same "
            "texts. HotFlip may swap {max_flips} words, typos may be in {max_typos}."
        ).format(**settings)

    def run(self, model: str, method: str, seed: int) -> tuple[dict[str, float], Outcomes]:
        folder = self.args.models_dir / f"{method.lower().replace(' ', '')}-{seed}"
        measured = self._train(method, seed, folder)
        trained, tokenizer = load_model(str(folder), self.data.num_labels)
        trained.to(self.args.device)
        clean = accuracy(trained, tokenizer, list(self.data.test["text"]), list(self.data.test["label"]), self.args)
        has_learned = learned(clean, majority(self.data.test["label"]), len(self.data.test))
        rows = self.data.test.select(range(min(self.args.attack_size, len(self.data.test))))
        found = attack(trained, tokenizer, list(rows["text"]), list(rows["label"]), self.args, folder)
        return {"learned": has_learned, "clean": clean, **measured}, found

    def _train(self, method: str, seed: int, folder: Path) -> dict[str, float]:
        """Train, and keep the model in a folder; one that is there already is not trained again."""
        measured = folder / "training.json"
        if measured.is_file():
            return json.loads(measured.read_text(encoding="utf-8"))
        trainer = self.trainer(method, argparse.Namespace(**{**vars(self.args), "seed": seed}))
        begin = time.perf_counter()
        trainer.run(catch_KeyboardInterrupt=False)
        found = {"steps": trainer.global_forward_batches, "train_seconds": time.perf_counter() - begin}
        trainer.model.backbone.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        measured.write_text(json.dumps(found), encoding="utf-8")  # last: the folder is complete
        return found

    def trainer(self, method: str, args: argparse.Namespace, *callbacks: Callback, size: int | None = None) -> Trainer:
        torch.manual_seed(args.seed)
        fused = "gradient penalty" not in method
        backbone, self.tokenizer = load_model(args.model, self.data.num_labels, fused=fused)
        bundle = first(tokenize(self.data, self.tokenizer, args.max_length), size)
        options = {"evaluate_every": -args.epochs - 1, "progress_bar": None}  # at the end
        return build(TextClassifier(backbone), bundle, [*callbacks_of(method), *callbacks], args, **options)


@torch.no_grad()
def accuracy(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], labels: Sequence[int], args: argparse.Namespace
) -> float:
    """Compute the share of texts that the model is right on."""
    right = 0
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length share a batch
    for batch in _batches(tokenizer, [(texts[i], labels[i]) for i in order], args):
        batch = {name: value.to(args.device) for name, value in batch.items()}
        labels_of = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels_of).sum())
    return right / len(texts)


def attack(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int],
    args: argparse.Namespace,
    folder: Path,
) -> Outcomes:
    """
    Attack a model. The changed texts go into ``attacked.csv``, and all into ``report.html``.

    :return: for each text whether it is right: ``attacked_0`` (without an attack), ``attacked_<epsilon>`` for each
        radius, ``hotflip_<n>`` and ``typos_<n>`` for each number of words that may be changed.
    """
    curve = under_perturbations(model, tokenizer, texts, labels, args)
    options = {"batch_size": 2 * args.batch_size, "max_length": args.max_length}
    found: dict[str, list[Attacked]] = {}
    if args.max_flips:
        found["hotflip"] = HotFlip(model, tokenizer, max_flips=args.max_flips, **options).attack(texts, labels)
    if args.max_typos:
        found["typos"] = Typos(model, tokenizer, max_typos=args.max_typos, **options).attack(texts, labels)
    if found:
        with (folder / "attacked.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["attack", "label", "prediction", "original", "attacked"])
            for name, results in found.items():
                changed = [each for each in results if each.changes]
                writer.writerows([name, each.label, each.prediction, each.original, each.text] for each in changed)
        results = [each for several in found.values() for each in several]
        write_report(results, folder / "report.html", title=f"{folder.name}: {' and '.join(found)}")
    return {
        **{f"attacked_{epsilon:g}": [[float(each), 1.0] for each in right] for epsilon, right in curve.items()},
        **by_changes("hotflip", found.get("hotflip", ()), args.max_flips),
        **by_changes("typos", found.get("typos", ()), args.max_typos),
    }


def by_changes(name: str, results: Sequence[Attacked], most: int) -> Outcomes:
    """Read off a search what each lower limit leaves: the attacks are greedy, and would stop there on the same way."""
    return {f"{name}_{n}": [_still_right(each, n) for each in results] for n in range(1, most + 1)}


def _still_right(result: Attacked, limit: int) -> Counts:
    if result.not_attacked:
        return None
    return [float(result.was_right and not (result.fooled and len(result.changes) <= limit)), 1.0]


def under_perturbations(
    model: nn.Module, tokenizer: Any, texts: Sequence[str], labels: Sequence[int], args: argparse.Namespace
) -> dict[float, list[bool]]:
    """
    Find which texts are predicted right wherever the attack looks in a ball, for each radius and 0 (no attack).

    A text that was wrong once stays wrong, so neither another start nor a larger ball looks at it again.
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
            for radius in (epsilon,) if found else (0.0, epsilon):
                kept = {i for i, is_right in zip(left, right[radius], strict=True) if is_right}
                found[radius] = [i in kept for i in range(len(texts))]
            left = [i for i in left if found[epsilon][i]]
    return found


def _batches(tokenizer: Any, rows: list[tuple[str, int]], args: argparse.Namespace) -> Iterator[dict[str, Tensor]]:
    for begin in range(0, len(rows), args.batch_size):
        texts, labels = zip(*rows[begin : begin + args.batch_size], strict=True)
        encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=args.max_length, return_tensors="pt")
        yield {**{name: encoded[name] for name in ("input_ids", "attention_mask")}, "labels": torch.tensor(labels)}
