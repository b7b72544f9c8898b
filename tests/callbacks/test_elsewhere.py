"""Batches that do not come to the embedding, that have no tokens, and that the model takes apart."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from scenarios import Batches
from support import Classifier, build, callback_of, collate, distance, samples, train, weights
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import (
    ATTACallback,
    FGMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)


class MultiTask(Classifier):
    """Some batches have words, others numbers that never reach the embedding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = nn.Linear(3, 8)

    def train_step(self, labels, input_ids=None, numbers=None):
        hidden = self.numbers(numbers) if input_ids is None else self.rnn(self.word_embeddings(input_ids))[0].mean(1)
        pred = self.head(self.dropout(hidden))
        return {"loss": cross_entropy(pred, labels), "pred": pred}


def tasks(order):
    """Batches in an order of ``w`` for words and ``n`` for numbers."""
    words = [collate(samples(4, seed=i)) for i in range(len(order))]
    g = torch.Generator().manual_seed(0)
    for kind, batch in zip(order, words, strict=True):
        batch.pop("attention_mask")
        if kind == "n":
            batch.pop("input_ids")
            batch["numbers"] = torch.randn(4, 3, generator=g)
    return words


CALLBACKS = [
    FGMCallback,
    lambda: FGMCallback(replace=True, granularity="token"),
    PGDCallback,
    lambda: PGDCallback(random_init=True),
    FreeLBCallback,
    TAVATCallback,
    VATCallback,
    SMARTCallback,
    R3FCallback,
    GradientPenaltyCallback,
]
EVERY = [*CALLBACKS, lambda: FGMCallback(emb_name="head"), ATTACallback]


@pytest.mark.parametrize("make", CALLBACKS)
def test_a_batch_that_goes_elsewhere_is_a_plain_step_and_counted(make):
    """After one step on words, those on numbers train the weights as plain training does."""
    order = "wwnnnn"
    ours, plain, callback = MultiTask(dropout=0.0), MultiTask(dropout=0.0), make()
    first, kwargs = [], {"n_epochs": 1, "n_batches": -1, "accumulation_steps": 2}
    copy = callback_of(on_train_batch_end=lambda trainer: first.append(deepcopy(ours.state_dict())))
    trainer = build(ours, [callback, copy], train_dataloader=Batches(tasks(order)), **kwargs)
    trainer.run()
    plain.load_state_dict(first[1])
    build(plain, [], train_dataloader=Batches(tasks(order)[2:]), **kwargs).run()
    assert distance(ours, plain) < 1e-6
    assert int(trainer.state["adv"]["skipped"]) >= 4


@pytest.mark.parametrize("make", CALLBACKS)
def test_an_embedding_that_was_never_looked_up_is_probably_the_wrong_one(make):
    trainer = build(MultiTask(), [make()], train_dataloader=Batches(tasks("nn")), n_epochs=1, n_batches=-1)
    with pytest.raises(RuntimeError, match=r"to look up embedding `word_embeddings.weight`.*`emb_name`"):
        trainer.run()


class Empty(Classifier):
    """Takes texts of no tokens."""

    def train_step(self, input_ids, labels):
        hidden = torch.tanh(self.word_embeddings(input_ids)).sum(1)
        pred = self.head(hidden)
        return {"loss": cross_entropy(pred, labels, reduction="sum") / max(len(labels), 1), "pred": pred}


@pytest.mark.parametrize("shape", [(4, 0), (0, 5)])
@pytest.mark.parametrize("make", EVERY)
def test_a_lookup_of_no_tokens_trains_on(make, shape):
    data = [
        {"input_ids": torch.randint(1, 50, size), "labels": torch.randint(0, 3, size[:1])}
        for size in [(4, 5), shape, (4, 5)]
    ]
    model = Empty()
    train(model, [make()], train_dataloader=Batches(data), n_epochs=2, n_batches=-1)
    assert torch.isfinite(weights(model)).all()


class Pops(Classifier):
    def train_step(self, batch):
        return super().train_step(batch.pop("input_ids"), batch.pop("labels"))


@pytest.mark.parametrize("make", [*EVERY, RDropCallback, lambda: RDropCallback(mode="two_pass")])
def test_a_step_may_take_fields_out_of_the_batch(make):
    ours, theirs = Pops(dropout=0.3), Classifier(dropout=0.3)
    for model in (ours, theirs):
        train(model, [make()], n_batches=6, model_wo_auto_param_call=model is ours)
    assert torch.equal(weights(ours), weights(theirs))
