"""
Small networks from scratch on Chinese characters, attacked by swapped characters and homophones: a classifier of
reviews, and a tagger of named entities.

Both count alike. Each text gives two numbers: how much of it is right, and half of the number of predictions and true
labels together. Their sums over texts make the accuracy (one prediction, one label) or the F1 of the entities.
"""

from __future__ import annotations

import argparse
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import chinese_ner
import chinese_reviews
import torch
from chinese_data import load_tagged
from fastNLP import Callback, Trainer
from torch import Tensor, nn

from fastnlp_adv import RDropCallback
from studies.edits import SLIPS, worst_texts
from studies.methods import PLAIN, WHOLE, callbacks_of
from studies.runs import Counts
from studies.tasks.base import Outcomes, TimedTask, first, learned, load_part, majority

BATCH = 128
ATTACK = {
    "attack_size": (200, "test texts to attack"),
    "candidates": (32, "edits tried for each edit that is made"),
    "edits": (2, "edits that a text may get"),
}


class Chinese(TimedTask):
    """Shared by both."""

    methods: ClassVar = [PLAIN, WHOLE, "PGD", "R-Drop", "gradient penalty", f"{WHOLE} + R-Drop"]
    model_said: ClassVar[str]
    score: ClassVar[str]  # its name among the results of the evaluator
    guess: float  # what a constant prediction has
    test_count: int
    texts: list[str]
    tags: list[list[str]] | None = None
    vocabulary: Any

    @abstractmethod
    def losses(self, model: nn.Module, which: Sequence[int], texts: Sequence[str]) -> list[float]:
        """Compute the losses of texts, each with the label of the text of that number."""

    @abstractmethod
    def counts(self, model: nn.Module, texts: Sequence[str]) -> list[Counts]:
        """Count what is right in edited texts."""

    @staticmethod
    def columns(settings: dict) -> dict[str, str]:
        heads = {"swap": "swapped", "homophone": "homophones"}
        edits = {f"{slip}_{n}": f"{heads[slip]}: {n}" for slip in SLIPS for n in range(1, settings["edits"] + 1)}
        return {"clean": "clean", "attacked_0": "0 edits", **edits}

    @classmethod
    def described(cls, settings: dict) -> str:
        return (
            cls.model_said + ", from scratch: {epochs} epochs, batch size {batch_size}, learning rate {lr:g}, at most "
            "{max_length} characters. {metric} on {test_size} test texts (clean) and on {attack_size} of them: without "
            "an attack (0 edits), and after 1 or more characters are swapped with their neighbours or replaced by "
            "homophones. For each edit {candidates} are tried, and the one of the highest loss is kept."
        ).format(**settings, metric=cls.metric[0].upper() + cls.metric[1:])

    def run(self, model: str, method: str, seed: int) -> tuple[dict[str, float], Outcomes]:
        trainer = self.trainer(method, argparse.Namespace(**{**vars(self.args), "seed": seed}))
        begin = time.process_time()
        trainer.run(catch_KeyboardInterrupt=False)
        seconds = time.process_time() - begin
        clean = trainer.evaluator.run()[self.score]
        has_learned = learned(clean, self.guess, self.test_count)
        measured = {"steps": trainer.global_forward_batches, "train_seconds": seconds}
        return {"learned": has_learned, "clean": clean, **measured}, self.attacked(trainer.model)

    def attacked(self, model: nn.Module) -> Outcomes:
        """Count what is right without an attack and after 1, 2, ... edits; ``None`` for a text without candidates."""
        found: Outcomes = {"attacked_0": self.counts(model, self.texts)}
        for slip in SLIPS:
            turns = worst_texts(
                self.texts,
                self.tags,
                lambda which, texts: self.losses(model, which, texts),
                slip,
                self.args.edits,
                self.args.candidates,
            )
            for n, texts in enumerate(turns, start=1):
                changed = [old if new is None else new for old, new in zip(self.texts, texts, strict=True)]
                counts = self.counts(model, changed)
                found[f"{slip}_{n}"] = [None if new is None else each for new, each in zip(texts, counts, strict=True)]
        return found


class Reviews(Chinese):
    title = "Results: Chinese reviews"
    settings: ClassVar = {
        "dataset": ("chinese-reviews", "chinese-reviews, or a .csv or .tsv file"),
        "train_size": (8000, "texts to train on"),
        "test_size": (3464, "texts for the clean accuracy"),
        "max_length": (100, "characters per text at most"),
        "epochs": (4, "passes over the training texts"),
        "batch_size": (32, "texts in a batch"),
        "lr": (2e-3, "learning rate"),
        **ATTACK,
    }
    model_said = "`CNNText` on the characters of {train_size} reviews (`{dataset}`)"
    score = "acc#accuracy"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.data = load_part(args.dataset, args.train_size, args.test_size)
        self.bundle, self.vocabulary = chinese_reviews.index_characters(self.data, args.max_length)
        self.guess, self.test_count = majority(self.data.test["label"]), len(self.data.test)
        rows = self.data.test.select(range(min(args.attack_size, self.test_count)))
        self.texts = [text[: args.max_length] for text in rows["text"]]
        self.labels = torch.tensor(rows["label"])

    @staticmethod
    def headline(settings: dict) -> str:
        return f"homophone_{settings['edits']}"

    def trainer(self, method: str, args: argparse.Namespace, *callbacks: Callback, size: int | None = None) -> Trainer:
        torch.manual_seed(args.seed)
        model = chinese_reviews.Classifier(self.vocabulary, self.data.num_labels)
        everything = [*callbacks_of(method), *callbacks]
        return chinese_reviews.trainer_for(model, first(self.bundle, size), everything, args, progress_bar=None)

    def losses(self, model: nn.Module, which: Sequence[int], texts: Sequence[str]) -> list[float]:
        def loss(rows: list[int]) -> Tensor:
            pred = model(*_batch(self.vocabulary, [texts[i] for i in rows]))["pred"]
            return nn.functional.cross_entropy(pred, self.labels[[which[i] for i in rows]], reduction="none")

        return _in_batches(model, texts, loss)

    def counts(self, model: nn.Module, texts: Sequence[str]) -> list[Counts]:
        def right(rows: list[int]) -> Tensor:
            pred = model(*_batch(self.vocabulary, [texts[i] for i in rows]))["pred"].argmax(-1)
            return (pred == self.labels[rows]).float()

        return [[each, 1.0] for each in _in_batches(model, texts, right)]


class Entities(Chinese):
    title = "Results: Chinese named entities"
    settings: ClassVar = {
        "train_size": (6000, "sentences to train on"),
        "test_size": (2000, "sentences for the clean F1"),
        "max_length": (80, "characters per sentence at most"),
        "epochs": (6, "passes over the training sentences"),
        "batch_size": (32, "sentences in a batch"),
        "lr": (5e-3, "learning rate"),
        **ATTACK,
    }
    metric, unit = "F1", "sentences"
    model_said = "BiLSTM + CRF on the characters of {train_size} sentences (`peoples-daily`)"
    score = "f#span"
    guess = 0.0  # of tagging nothing

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        data = load_tagged(args.train_size)
        self.bundle, self.vocabulary, self.tag_names = chinese_ner.index_characters(
            data, args.max_length, args.test_size
        )
        self.test_count = len(self.bundle.get_dataset("test"))
        rows = [row for row in data.test if len(row[0]) <= args.max_length and set(row[1]) != {"O"}]
        rows = [rows[i * len(rows) // args.attack_size] for i in range(min(args.attack_size, len(rows)))]
        self.texts = ["".join(characters) for characters, _ in rows]
        self.tags = [tags for _, tags in rows]

    def trainer(self, method: str, args: argparse.Namespace, *callbacks: Callback, size: int | None = None) -> Trainer:
        torch.manual_seed(args.seed)
        model = chinese_ner.Tagger(self.vocabulary, self.tag_names, with_marginals="R-Drop" in method)
        own = [  # R-Drop compares the predictions of a random field
            chinese_ner.rdrop(each.kl_weight) if isinstance(each, RDropCallback) else each
            for each in callbacks_of(method)
        ]
        bundle = first(self.bundle, size)
        return chinese_ner.trainer_for(model, bundle, self.tag_names, [*own, *callbacks], args, progress_bar=None)

    def losses(self, model: nn.Module, which: Sequence[int], texts: Sequence[str]) -> list[float]:
        def loss(rows: list[int]) -> Tensor:
            words, lengths = _batch(self.vocabulary, [texts[i] for i in rows])
            tags = [[self.tag_names.to_index(tag) for tag in self.tags[which[i]]] for i in rows]
            target = torch.tensor([row + [0] * (words.shape[1] - len(row)) for row in tags])
            return model.crf(model(words, lengths), target, _mask(words, lengths))

        return _in_batches(model, texts, loss)

    def counts(self, model: nn.Module, texts: Sequence[str]) -> list[Counts]:
        found: list[Counts] = []
        model.eval()
        for begin in range(0, len(texts), BATCH):
            words, lengths = _batch(self.vocabulary, texts[begin : begin + BATCH])
            with torch.no_grad():
                mask = _mask(words, lengths)
                paths, _ = model.crf.viterbi_decode(model(words, lengths), mask, unpad=True)
            for tags, path in zip(self.tags[begin : begin + BATCH], paths, strict=True):
                predicted, true = entities([self.tag_names.to_word(i) for i in path]), entities(tags)
                found.append([float(len(predicted & true)), (len(predicted) + len(true)) / 2])
        return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Read the entities off the tags of a sentence: the kind, the beginning and the end of each."""
    found = set()
    for start in (i for i, tag in enumerate(tags) if tag.startswith("B-")):
        end = start + 1
        while end < len(tags) and tags[end].startswith("I-"):
            end += 1
        found.add((tags[start][2:], start, end))
    return found


def _batch(vocabulary: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the ids of the characters, and the lengths."""
    rows = [[vocabulary.to_index(character) for character in text] or [vocabulary.unknown_idx] for text in texts]
    longest = max(map(len, rows))
    ids = [row + [vocabulary.padding_idx] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([len(row) for row in rows])


def _mask(words: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(words.shape[1]) < lengths.unsqueeze(1)


def _in_batches(model: nn.Module, texts: Sequence[str], values: Callable[[list[int]], Tensor]) -> list[float]:
    """Compute a value for each text, texts of like length together."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [0.0] * len(texts)
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        with torch.no_grad():
            computed = values(rows).tolist()
        for i, value in zip(rows, computed, strict=True):
            found[i] = value
    return found
