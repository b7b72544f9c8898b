"""Losses that are no mean over the batch, causal language models, and multi-label targets."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from smoothness import both
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fastnlp_adv import R3F, SMART, VAT, RDrop

VOCAB = 60
ITEMS = pytest.mark.skipif(
    "kwargs" not in inspect.signature(GPT2LMHeadModel.forward).parameters,
    reason="GPT-2 takes `num_items_in_batch` in later versions of transformers",
)


def gpt2(dropout=0.1):
    torch.manual_seed(0)
    drop = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=16, **drop)).train()


def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, attention_dropout=0.3, **size)).train()


class Tagger(nn.Module):
    """Sums over its tokens and divides by what it is given."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.drop, self.head = nn.Embedding(VOCAB, 8), nn.Dropout(dropout), nn.Linear(8, 5)

    def forward(self, input_ids, labels, num_items_in_batch=None):
        pred = self.head(self.drop(self.words(input_ids)))
        total = F.cross_entropy(pred.mT, labels % 5, reduction="sum")
        return {"loss": total / num_items_in_batch, "pred": pred}


def sentences(rows=4):
    ids = torch.randint(5, VOCAB, (rows, 8), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.clone()}


# Losses that are divided by what they are given.


@pytest.mark.parametrize("model", [pytest.param(lambda: gpt2(dropout=0.0), marks=ITEMS), Tagger], ids=["GPT-2", "own"])
@pytest.mark.parametrize("count", [torch.tensor(28), 28, torch.tensor(90.0)], ids=["tensor", "int", "of two batches"])
def test_a_doubled_batch_has_twice_the_items(model, count, recwarn):
    model, batch = model(), {**sentences(), "num_items_in_batch": count}
    plain = model(**batch)["loss"]
    for mode in ("concat", "two_pass"):
        found = RDrop(kl_weight=0.0, mode=mode)(lambda b: model(**b), batch)
        torch.testing.assert_close(found["loss"], plain)
    assert batch["num_items_in_batch"] is count
    assert not [each for each in recwarn if "R-Drop" in str(each.message)]


def test_looking_at_an_unusual_loss_draws_no_dropout_mask():
    model, batch = Tagger(dropout=0.5), sentences()
    rows = []

    def step(batch):
        rows.append(len(batch["input_ids"]))
        pred = model.head(model.drop(model.words(batch["input_ids"])))
        return {"loss": pred.square().mean(), "pred": pred}

    rdrop, found = RDrop(), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(rdrop(step, batch))
        found.append(torch.rand(3))
    assert rows == [8, 4, 8]
    torch.testing.assert_close(found[0]["pred2"], found[2]["pred2"], rtol=0, atol=0)
    assert torch.equal(found[1], found[3])


# The positions of causal language models.


def partly_labelled():
    """A batch, and the rows and columns of the positions whose following one has a label."""
    batch = sentences()
    batch["labels"][:, :3] = -100  # a prompt
    batch["labels"][1, 6:] = -100
    rows = batch["labels"].tolist()
    found = [(i, j) for i, row in enumerate(rows) for j, label in enumerate(row[1:]) if label != -100]
    return batch, tuple(zip(*found, strict=True))


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_position_counts_whose_loss_is_the_next_labels(make, mode):
    model, (batch, following) = make(), partly_labelled()

    def of_ones_own(batch):
        outputs = model(**batch)
        return {"loss": outputs.loss, "pred": outputs.logits}

    for rdrop, step in ((RDrop(mode=mode), lambda b: model(**b)), (RDrop(model, mode=mode), of_ones_own)):
        found = rdrop(step, batch)
        expected = both(found["pred"][following], found["pred2"][following]).item() / 2
        assert found["kl"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", [VAT, SMART, R3F])
def test_smoothness_counts_the_same_positions(method):
    """The positions that do not count are made to differ in each forward: they change nothing."""
    model, (batch, following) = gpt2(dropout=0.0), partly_labelled()
    elsewhere, calls = torch.ones(4, 8, 1), []
    elsewhere[following] = 0.0

    def step(batch, noise):
        outputs = model(**batch)
        calls.append(noise)
        spread = len(calls) * noise * elsewhere * torch.arange(VOCAB)
        return {"loss": outputs.loss, "pred": outputs.logits + spread}

    found = []
    for noise in (0.0, 1.0):
        regularizer = method(model, dropout_mask="same")
        regularizer.stream.generator = torch.Generator().manual_seed(5)
        found.append(regularizer(lambda b, noise=noise: step(b, noise), batch)[method.name])
        regularizer.close()
    assert found[0] > 0
    torch.testing.assert_close(found[0], found[1])


# Targets of several labels.


def several(rows=6, classes=4):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, classes))

    def step(batch):
        pred = net(batch["ids"])
        return {"loss": F.binary_cross_entropy_with_logits(pred, batch["labels"]), "pred": pred}

    return net, step, {"ids": sentences(rows)["input_ids"], "labels": torch.rand(rows, classes).round()}


@pytest.mark.parametrize(
    "method", [lambda m, **how: RDrop(**how), lambda m, **how: RDrop(mode="two_pass", **how), VAT, SMART, R3F]
)
def test_labels_of_zeros_and_ones_need_bernoulli(method):
    net, step, batch = several()
    with pytest.raises(ValueError, match=r"'bernoulli' for labels of shape \(6, 4\).*got 'categorical'.*'bernoulli'"):
        method(net)(step, batch)
    assert method(net, divergence="bernoulli")(step, batch)["loss"].isfinite()
    for targets in (torch.rand(6, 4).softmax(-1), F.one_hot(torch.arange(6) % 4, 4).float()):
        assert method(net)(step, {**batch, "labels": targets})["loss"].isfinite()
