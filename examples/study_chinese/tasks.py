"""
What the Chinese study trains and how that is measured: a classifier of reviews, and a tagger of named entities.

Both count alike. Each text gives two numbers: what is right in it, and half of what was said and what should have been
said together. Their sums over texts make the accuracy (one label is said and should be) or the F1 of the entities.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import chinese_ner
import chinese_reviews
import torch
from chinese_data import load_tagged
from data import load_data
from fastNLP import Trainer
from study.train import callbacks_of
from torch import Tensor, nn

from fastnlp_adv import RDropCallback

BATCH = 128
Counts = "list[list[float]]"


class Reviews:
    """CNNText on the characters of reviews."""

    metric = "accuracy"
    unit = "texts"

    def __init__(self, args: argparse.Namespace):
        self.args = args
        data = load_data("chinese-reviews", args.train_size)
        self.data = replace(data, test=data.test.select(range(min(args.test_size, len(data.test)))))
        self.bundle, self.vocabulary = chinese_reviews.index_characters(self.data, args.max_length)
        rows = self.data.test.select(range(min(args.attack_size, len(self.data.test))))
        self.texts = [text[: args.max_length] for text in rows["text"]]
        self.labels = torch.tensor(rows["label"])
        self.tags = None

    def build(self, method: str, seed: int) -> Trainer:
        torch.manual_seed(seed)
        model = chinese_reviews.Classifier(self.vocabulary, self.data.num_labels)
        args = argparse.Namespace(**{**vars(self.args), "seed": seed})
        return chinese_reviews.trainer_for(model, self.bundle, callbacks_of(method), args, progress_bar=None)

    def clean(self, trainer: Trainer) -> float:
        return trainer.evaluator.run()["acc#accuracy"]

    def losses(self, model: nn.Module, which: Sequence[int], texts: Sequence[str]) -> list[float]:
        def loss(rows: list[int]) -> Tensor:
            pred = model(*_batch(self.vocabulary, [texts[i] for i in rows]))["pred"]
            return nn.functional.cross_entropy(pred, self.labels[[which[i] for i in rows]], reduction="none")

        return _in_batches(model, texts, loss)

    def counts(self, model: nn.Module, texts: Sequence[str]) -> Counts:
        def right(rows: list[int]) -> Tensor:
            pred = model(*_batch(self.vocabulary, [texts[i] for i in rows]))["pred"].argmax(-1)
            return (pred == self.labels[rows]).float()

        return [[each, 1.0] for each in _in_batches(model, texts, right)]


class Entities:
    """A BiLSTM and a conditional random field on the characters of the People's Daily."""

    metric = "F1"
    unit = "sentences"

    def __init__(self, args: argparse.Namespace):
        self.args = args
        data = load_tagged(args.train_size)
        self.bundle, self.vocabulary, self.tag_names = chinese_ner.index_characters(
            data, args.max_length, args.test_size
        )
        rows = [row for row in data.test if len(row[0]) <= args.max_length and set(row[1]) != {"O"}]
        rows = [rows[i * len(rows) // args.attack_size] for i in range(min(args.attack_size, len(rows)))]
        self.texts = ["".join(characters) for characters, _ in rows]
        self.tags = [tags for _, tags in rows]

    def build(self, method: str, seed: int) -> Trainer:
        torch.manual_seed(seed)
        model = chinese_ner.Tagger(self.vocabulary, self.tag_names, with_marginals="R-Drop" in method)
        args = argparse.Namespace(**{**vars(self.args), "seed": seed})
        callbacks = [  # what R-Drop compares is what a random field predicts
            chinese_ner.rdrop(each.kl_weight) if isinstance(each, RDropCallback) else each
            for each in callbacks_of(method)
        ]
        return chinese_ner.trainer_for(model, self.bundle, self.tag_names, callbacks, args, progress_bar=None)

    def clean(self, trainer: Trainer) -> float:
        return trainer.evaluator.run()["f#span"]

    def losses(self, model: nn.Module, which: Sequence[int], texts: Sequence[str]) -> list[float]:
        def loss(rows: list[int]) -> Tensor:
            words, lengths = _batch(self.vocabulary, [texts[i] for i in rows])
            tags = [[self.tag_names.to_index(tag) for tag in self.tags[which[i]]] for i in rows]
            target = torch.tensor([row + [0] * (words.shape[1] - len(row)) for row in tags])
            return model.crf(model(words, lengths), target, _mask(words, lengths))

        return _in_batches(model, texts, loss)

    def counts(self, model: nn.Module, texts: Sequence[str]) -> Counts:
        found: Counts = []
        model.eval()
        for begin in range(0, len(texts), BATCH):
            words, lengths = _batch(self.vocabulary, texts[begin : begin + BATCH])
            with torch.no_grad():
                mask = _mask(words, lengths)
                paths, _ = model.crf.viterbi_decode(model(words, lengths), mask, unpad=True)
            for tags, path in zip(self.tags[begin : begin + BATCH], paths, strict=True):
                said, true = entities([self.tag_names.to_word(i) for i in path]), entities(tags)
                found.append([float(len(said & true)), (len(said) + len(true)) / 2])
        return found


TASKS = {"reviews": Reviews, "ner": Entities}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """
    :param tags: the tags of a sentence.
    :return: its entities: the kind, the beginning and the end of each.

    Example::

        >>> sorted(entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    starts = [i for i, tag in enumerate(tags) if tag.startswith("B-")]
    found = set()
    for start in starts:
        end = start + 1
        while end < len(tags) and tags[end].startswith("I-"):
            end += 1
        found.add((tags[start][2:], start, end))
    return found


def _batch(vocabulary, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The ids of the characters, and the lengths."""
    rows = [[vocabulary.to_index(character) for character in text] or [vocabulary.unknown_idx] for text in texts]
    longest = max(map(len, rows))
    ids = [row + [vocabulary.padding_idx] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([len(row) for row in rows])


def _mask(words: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(words.shape[1]) < lengths.unsqueeze(1)


def _in_batches(model: nn.Module, texts: Sequence[str], values) -> list[float]:
    """A value for each text, those of like length together."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [0.0] * len(texts)
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        with torch.no_grad():
            told = values(rows).tolist()
        for i, value in zip(rows, told, strict=True):
            found[i] = value
    return found
