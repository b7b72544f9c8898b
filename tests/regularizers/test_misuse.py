"""What R-Drop warns of in its first batch, and what it must not take for that."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from support import Classifier, train
from torch import nn

from fastnlp_adv import RDropCallback
from fastnlp_adv.regularizers import RDrop, RDropMixin


def said(step, batch, times=1, **settings):
    """The warnings of so many steps of one R-Drop."""
    rdrop = RDrop(**settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            rdrop(step, batch)
    return [str(w.message) for w in caught]


def classes(rows, count):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, count))
    return net, {"x": torch.randn(rows, 5), "labels": torch.randint(count, (rows,))}


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_in_the_place_of_logits_are_told_once(mode, dtype):
    net, batch = classes(6, 4)
    net, batch["x"] = net.to(dtype), batch["x"].to(dtype)

    def step(batch, give=lambda pred: pred.softmax(-1)):
        pred = net(batch["x"])
        return {"loss": F.cross_entropy(pred, batch["labels"]), "pred": give(pred)}

    (message,) = said(step, batch, times=3, mode=mode)
    assert "logits" in message and "softmax" in message
    for right in (lambda pred: pred, lambda pred: pred.log_softmax(-1), lambda pred: pred.softmax(-1) * 2):
        assert said(lambda b, right=right: step(b, right), batch, mode=mode) == []
    assert said(step, batch, mode=mode, divergence="mse") == []


WORDS = torch.tensor([[0, 1, -100]] * 6)
#: losses that are no mean over the examples: the divergence that goes with them, the labels and their name
GROWING = {
    "classes": (lambda p, y: F.cross_entropy(p, y, reduction="sum"), "categorical", "labels", torch.arange(6) % 4),
    "decisions": (
        lambda p, y: F.binary_cross_entropy_with_logits(p, y, reduction="sum"),
        "bernoulli",
        "targets",
        torch.eye(6, 4),
    ),
    "numbers": (lambda p, y: F.mse_loss(p, y, reduction="sum"), "mse", "target", torch.eye(6, 4)),
    "words": (lambda p, y: F.cross_entropy(p.mT, y, reduction="sum"), "categorical", "label", WORDS),
    "by a constant": (lambda p, y: F.cross_entropy(p.mT, y, reduction="sum") / 28, "categorical", "labels", WORDS),
    "smoothed": (
        lambda p, y: F.cross_entropy(p.mT, y, reduction="sum", label_smoothing=0.2) / 28,
        "categorical",
        "labels",
        WORDS,
    ),
    "of ones own": (lambda p, y: p.exp().sum(-1).log().sum() / 50, "categorical", "labels", WORDS),
}


@pytest.mark.parametrize("loss, divergence, name, labels", GROWING.values(), ids=GROWING)
def test_a_loss_that_grows_with_the_batch_is_told_under_concat_once(loss, divergence, name, labels):
    net, _ = classes(6, 4)
    batch = {"x": torch.randn(*labels.shape[: 2 if labels is WORDS else 1], 5), name: labels}

    def step(batch, by_rows=False):
        pred = net(batch["x"])
        return {"loss": loss(pred, batch[name]) / (len(pred) if by_rows else 1), "pred": pred}

    (message,) = said(step, batch, times=3, divergence=divergence)
    assert "twice as large" in message and "mode='two_pass'" in message
    assert said(step, batch, divergence=divergence, mode="two_pass") == []
    assert said(lambda batch: step(batch, by_rows=True), batch, divergence=divergence) == []


class Softmaxed(Classifier):
    def train_step(self, input_ids, labels):
        outputs = super().train_step(input_ids, labels)
        return {**outputs, "pred": outputs["pred"].softmax(-1)}


class Mixed(RDropMixin, Softmaxed):
    rdrop_mode = "concat"


@pytest.mark.parametrize("model, callbacks", [(Softmaxed, [RDropCallback()]), (Mixed, []), (Mixed, [RDropCallback()])])
@pytest.mark.filterwarnings("always")
def test_a_training_says_it_once_and_trains(model, callbacks, recwarn):
    train(Classifier(), [RDropCallback()])  # says nothing
    train(model(), callbacks)
    assert ["softmax" in str(each.message) for each in recwarn if "R-Drop" in str(each.message)] == [True]
