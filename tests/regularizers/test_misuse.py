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


SUMMED = {
    "categorical": (F.cross_entropy, torch.tensor([0, 1, 2, 3, 0, 1]), "labels"),
    "bernoulli": (F.binary_cross_entropy_with_logits, torch.eye(6, 4), "targets"),
    "mse": (F.mse_loss, torch.eye(6, 4), "target"),
    "tokens": (F.cross_entropy, torch.tensor([[0, 1, -100]] * 6), "label"),
}


@pytest.mark.parametrize("kind", SUMMED)
def test_a_summed_loss_is_told_under_concat_once(kind):
    net, _ = classes(6, 4)
    loss, labels, name = SUMMED[kind]
    batch = {"x": torch.randn(*((6, 3) if kind == "tokens" else (6,)), 5), name: labels}

    def step(batch, reduction="sum"):
        pred = net(batch["x"])
        return {"loss": loss(pred.mT if pred.dim() == 3 else pred, batch[name], reduction=reduction), "pred": pred}

    how = {"divergence": "categorical" if kind == "tokens" else kind}
    (message,) = said(step, batch, times=3, **how)
    assert "mean over the examples" in message and "mode='two_pass'" in message
    assert said(step, batch, **how, mode="two_pass") == []
    assert said(lambda batch: step(batch, "mean"), batch, **how) == []


class Softmaxed(Classifier):
    def train_step(self, input_ids, labels):
        outputs = super().train_step(input_ids, labels)
        return {**outputs, "pred": outputs["pred"].softmax(-1)}


class Mixed(RDropMixin, Softmaxed):
    rdrop_mode = "concat"


@pytest.mark.parametrize("model, callbacks", [(Softmaxed, [RDropCallback()]), (Mixed, []), (Mixed, [RDropCallback()])])
def test_a_training_says_it_once_and_trains(model, callbacks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model(), callbacks)
    assert sum("softmax" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Classifier(), [RDropCallback()])
    assert not [w for w in caught if "R-Drop" in str(w.message)]
