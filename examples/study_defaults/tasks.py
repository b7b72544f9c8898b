"""
What is trained: a pretrained encoder at two learning rates, and two models from scratch, on the movie review snippets.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass

from data import Data
from fastNLP import DataSet, Vocabulary
from fastNLP.io import DataBundle
from fastNLP.models.torch import CNNText
from models import load_model
from torch import Tensor, nn
from train_text_classification import TextClassifier, tokenize

__all__ = ["TASKS", "Task"]


class BiLSTM(nn.Module):
    def __init__(self, words: int, features: int, labels: int):
        super().__init__()
        self.embedding = nn.Embedding(words, features, padding_idx=0)
        self.lstm = nn.LSTM(features, features, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(2 * features, labels)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        return {"pred": self.head(self.dropout(self.lstm(self.embedding(words))[0].amax(1)))}


class FromScratch(nn.Module):
    """Gives a model of words the steps that the examples train and evaluate."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def train_step(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        pred = self.backbone(input_ids)["pred"]
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}

    def evaluate_step(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"pred": self.backbone(input_ids)["pred"].argmax(-1), "target": labels}


@dataclass(frozen=True)
class Task:
    """
    :param make: makes model and data, from the texts and the settings.
    :param settings: what a run depends on.
    """

    make: Callable[[Data, argparse.Namespace], tuple[nn.Module, DataBundle]]
    settings: dict


def _encoder(data: Data, args: argparse.Namespace) -> tuple[nn.Module, DataBundle]:
    backbone, tokenizer = load_model("minilm", data.num_labels)
    return TextClassifier(backbone), tokenize(data, tokenizer, args.max_length)


def _bilstm(data: Data, args: argparse.Namespace) -> tuple[nn.Module, DataBundle]:
    bundle, vocabulary = _words(data, args)
    return FromScratch(BiLSTM(len(vocabulary), args.features, data.num_labels)), bundle


def _cnn(data: Data, args: argparse.Namespace) -> tuple[nn.Module, DataBundle]:
    bundle, vocabulary = _words(data, args)
    return FromScratch(CNNText((len(vocabulary), args.features), data.num_labels)), bundle


def _words(data: Data, args: argparse.Namespace) -> tuple[DataBundle, Vocabulary]:
    parts = {
        name: DataSet(
            {
                "input_ids": [re.findall(r"\w+|[^\w\s]", text.lower())[: args.max_length] for text in part["text"]],
                "labels": list(part["label"]),
            }
        )
        for name, part in (("train", data.train), ("test", data.test))
    }
    vocabulary = Vocabulary(min_freq=2).from_dataset(parts["train"], field_name="input_ids")
    vocabulary.index_dataset(*parts.values(), field_name="input_ids")
    return DataBundle(datasets=parts), vocabulary


# short, at a high rate
_ENCODER = {"train_size": 1600, "max_length": 64, "epochs": 1, "batch_size": 16, "test_size": 2000}
_SCRATCH = {"train_size": 8000, "max_length": 64, "epochs": 3, "batch_size": 32, "test_size": 1000, "lr": 2e-3}
_ATTACK = {"attack_steps": 5, "radius": 0.1}

TASKS = {
    "bilstm": Task(_bilstm, {**_SCRATCH, "features": 64, **_ATTACK, "attack_size": 500}),
    "cnn": Task(_cnn, {**_SCRATCH, "features": 64, **_ATTACK, "attack_size": 500}),
    "minilm-2e-4": Task(_encoder, {**_ENCODER, "lr": 2e-4, **_ATTACK, "attack_size": 200}),
    "minilm-1e-4": Task(_encoder, {**_ENCODER, "lr": 1e-4, **_ATTACK, "attack_size": 200}),
}
