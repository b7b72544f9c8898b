"""
Each method moves what it is for: after training on the movie review snippets, its own objective on texts that were held
out is lower than after plain training, from each of three seeds, and the model is as accurate.

The objective of an attack is the loss of its last pass; for ATTA, of its last epoch. That of a regularizer is its term.
An embedding of a word has norm 5.7 before training.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import snippets
import torch
from fastNLP import TorchDataLoader
from support import build, collate
from torch import nn

from fastnlp_adv.callbacks import METHODS

SEEDS = (0, 1, 2)
TRAIN, HELD_OUT, LENGTH, BATCH, EPOCHS = 1500, 480, 24, 100, 5
SETTINGS = {
    "FGM": {"epsilon": 0.6, "granularity": "sequence"},
    "FGSM": {"epsilon": 0.03},
    "PGD": {"epsilon": 0.6, "alpha": 0.3, "granularity": "sequence"},
    "FreeLB": {"alpha": 0.2, "init": 0.2},
    "TAVAT": {"epsilon": 0.3, "alpha": 0.15, "init": 0.15, "steps": 3},
    "ATTA": {"epsilon": 0.5, "alpha": 0.25},
    "AWP": {"gamma": 0.01},
    "SAM": {"rho": 0.2},
    "RDrop": {"kl_weight": 4.0},
    "VAT": {"epsilon": 0.6},
    "SMART": {"epsilon": 0.03, "alpha": 0.03, "noise": 0.003},
    "R3F": {"epsilon": 0.3, "weight": 3.0},
    "GradientPenalty": {"weight": 1.0},
}


class Bag(nn.Module):
    """The mean of the words' embeddings, a hidden layer with dropout, and two classes."""

    def __init__(self, vocabulary, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(vocabulary, 32, padding_idx=0)
        self.hidden = nn.Linear(32, 32)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(32, 2)

    def train_step(self, ids, labels):
        mean = self.words(ids).sum(1) / (ids != 0).sum(1, keepdim=True).clamp(min=1)
        pred = self.head(self.dropout(torch.tanh(self.hidden(mean))))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


@pytest.fixture(scope="module")
def data():
    """Training data, held-out data, and the number of words."""
    try:
        texts, labels = snippets.load_snippets()
    except ConnectionError as error:
        pytest.skip(f"the snippets cannot be fetched: {error}")
    rows = sorted(zip(texts, labels, strict=True))
    random.Random(0).shuffle(rows)
    rows = [(text.lower().split()[:LENGTH], label) for text, label in rows[: TRAIN + HELD_OUT]]
    counts = Counter(word for words, _ in rows[:TRAIN] for word in words)
    number = {word: i for i, (word, count) in enumerate(counts.most_common(), start=2) if count > 1}
    encoded = []
    for words, label in rows:
        ids = [number.get(word, 1) for word in words] + [0] * (LENGTH - len(words))
        encoded.append({"ids": torch.tensor(ids), "labels": torch.tensor(int(label == "positive"))})
    return encoded[:TRAIN], encoded[TRAIN:], len(number) + 2


def loader(rows, shuffle):
    return TorchDataLoader(rows, batch_size=BATCH, shuffle=shuffle, collate_fn=collate, prefetch_factor=None)


def trained(data, seed, callbacks):
    rows, _, vocabulary = data
    model = Bag(vocabulary, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    arguments = {"train_dataloader": loader(rows, True), "n_epochs": EPOCHS, "n_batches": -1}
    build(model, callbacks, optimizers=optimizer, **arguments).run()
    return model


@pytest.fixture(scope="module")
def plain(data):
    return [trained(data, seed, []) for seed in SEEDS]


def objective(name, model, rows, settings):
    """The method's own, averaged over the batches; with dropout only for R-Drop, which is about dropout."""
    torch.manual_seed(0)
    method = METHODS[name]
    model.train(name == "RDrop")
    made = method.method(**settings) if name == "RDrop" else method.method(model, **settings)
    total = 0.0
    batches = list(loader(rows, False))
    for number, batch in enumerate(batches):
        if method.kind == "regularizer":
            total += made(lambda b: model.train_step(**b), batch)[made.name].item()
        else:
            total += last_loss(made, model, batch, range(BATCH * number, BATCH * number + len(batch["ids"])))
    made.close()
    return total / len(batches)


def last_loss(attack, model, batch, indices):
    losses = []

    def closure():
        losses.append(model.train_step(**batch)["loss"])
        return losses[-1]

    for _ in range(EPOCHS if hasattr(attack, "indices") else 1):
        attack.indices = indices
        attack.step(closure)
    return losses[-1].item()


def accuracy(model, rows):
    model.eval()
    batch = collate(rows)
    with torch.no_grad():
        return (model.train_step(**batch)["pred"].argmax(-1) == batch["labels"]).double().mean().item()


@pytest.mark.parametrize("name", SETTINGS)
def test_own_objective_is_lower_than_after_plain_training(name, data, plain):
    settings, held_out = SETTINGS[name], data[1]
    models = [trained(data, seed, [METHODS[name].callback(**settings)]) for seed in SEEDS]
    for ours, theirs in zip(models, plain, strict=True):
        assert objective(name, ours, held_out, settings) < 0.9 * objective(name, theirs, held_out, settings)
    # a model that answers the same to everything would be lower still
    ours, theirs = (sum(accuracy(m, held_out) for m in each) / len(SEEDS) for each in (models, plain))
    assert ours > theirs - 0.03 > 0.57
