"""Several lookups, lookups of unusual shape or kind, embeddings with options: the same as perturbing what they hold."""

from __future__ import annotations

import pytest
import torch
from references import (
    ATTACKS,
    Siamese,
    assert_same,
    batch,
    classifier,
    classifier_from,
    each_granularity,
    loss_on,
    on_weights,
    step,
    textbook,
)
from support import CLASSES, VOCAB
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import PGD

IDS, LABELS = batch(4, 7, vocab=12)
LOSS = loss_on(IDS, LABELS)
WORDS = ["word_embeddings.weight"]


class Pooled(nn.Module):
    """Any number of ids dimensions: what is looked up is summed up to a fixed weighting of the places."""

    def __init__(self, embedding=None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.word_embeddings = nn.Embedding(VOCAB, 6, **options) if embedding is None else embedding
        self.head = nn.Linear(6, CLASSES)
        self.double()

    def forward(self, ids):
        embedded = torch.tanh(self.word_embeddings(ids).reshape(len(ids), -1, 6))
        place = torch.arange(1, embedded.shape[1] + 1, dtype=embedded.dtype).unsqueeze(-1)
        return self.head((embedded * place.cos()).sum(1))


@ATTACKS
@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": -VOCAB + 3},
        {"padding_idx": None, "scale_grad_by_freq": True},
        {"padding_idx": 3, "scale_grad_by_freq": True},
        {"padding_idx": 3, "sparse": True},
    ],
    ids=str,
)
def test_options_of_the_embedding(build, reference, options):
    """Ids from 12 tokens, so that tokens repeat in the batch, padding among them."""
    model = classifier(**options)
    found = step(build(model), model, LOSS)
    assert_same(found, on_weights(model, LOSS, WORDS, **reference))
    assert model.word_embeddings.weight.grad.is_sparse == options.get("sparse", False)


@ATTACKS
@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.filterwarnings("error:.*non-contiguous")
def test_ids_of_any_shape_and_integer_type(build, reference, shape, dtype):
    ids, labels = batch(*shape, vocab=9)
    ids = ids.to(dtype)
    model = Pooled(padding_idx=3)
    loss = loss_on(ids, labels)
    assert_same(step(build(model), model, loss), on_weights(model, loss, WORDS, **reference))
    turned = loss_on(ids.transpose(0, -1).contiguous().transpose(0, -1), labels)
    assert_same(step(build(model), model, turned), on_weights(model, turned, WORDS, **reference))


@ATTACKS
@each_granularity
def test_a_frozen_embedding_is_attacked_and_stays_frozen(build, reference, granularity):
    model = classifier()
    model.word_embeddings.weight.requires_grad_(False)
    found = step(build(model, granularity=granularity), model, LOSS)
    assert found["word_embeddings.weight"] is None
    assert_same(found, textbook(model, granularity, LOSS, IDS, classifier_from(LABELS), **reference))


class InPlace(Pooled):
    """Adds positions to the embedding's own output."""

    def forward(self, ids):
        x = self.word_embeddings(ids)
        x += torch.linspace(-1, 1, ids.shape[1], dtype=x.dtype).unsqueeze(-1)
        x *= 2
        x[:, 0].tanh_()
        return self.head(torch.tanh(x).sum(1))


@ATTACKS
@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_that_writes_to_what_it_looked_up(build, reference, frozen):
    model = InPlace()
    model.word_embeddings.weight.requires_grad_(not frozen)
    assert_same(step(build(model), model, LOSS), on_weights(model, LOSS, WORDS, **reference))


class Scaled(nn.Embedding):
    """In the manner of transformers, some of which call the argument otherwise than torch."""

    def __init__(self, scale):
        super().__init__(VOCAB, 6)
        self.embed_scale = scale

    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale


@ATTACKS
@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0)], ids=["number", "tensor"])
def test_scaled_lookups(build, reference, scale):
    class Model(Pooled):
        def forward(self, ids):
            return self.head(torch.tanh(self.word_embeddings(input_ids=ids)).sum(1))

    model = Model(Scaled(scale))
    assert_same(step(build(model), model, LOSS), on_weights(model, LOSS, WORDS, **reference))


# Several lookups.


@ATTACKS
@each_granularity
@pytest.mark.parametrize("shapes", [((4, 7), (4, 7)), ((4, 7), (4, 2)), ((4, 3), (1, 7))], ids=str)
def test_two_lookups_in_a_forward(build, reference, granularity, shapes):
    left, right = (batch(*shape, vocab=12, seed=seed)[0] for seed, shape in enumerate(shapes))
    model = Siamese(padding_idx=3)

    def loss(m):
        return m(left, right)

    found = step(build(model, granularity=granularity), model, loss)
    expected = textbook(model, granularity, loss, [left, right], Siamese.compare, lambda m: m.emb, **reference)
    assert_same(found, expected)


@ATTACKS
@each_granularity
def test_two_forwards_before_one_backward(build, reference, granularity):
    """As R-Drop with two passes has; the loss tells the two apart."""
    model = classifier()

    def loss_from(m, *lookups):
        one, other = (m.head(m.rnn(embedded)[0].mean(1)) for embedded in lookups)
        return cross_entropy(one, LABELS) + 0.5 * cross_entropy(2 * other, LABELS) + (one - other * 0.9).square().mean()

    def loss(m):
        return loss_from(m, *(m.word_embeddings(IDS) for _ in range(2)))

    found = step(build(model, granularity=granularity), model, loss)
    expected = textbook(model, granularity, loss, [IDS, IDS], loss_from, **reference)
    assert_same(found, expected)


@ATTACKS
@pytest.mark.parametrize("pads", [(1, None), (None, 1), (1, 2)])
def test_modules_that_share_a_weight_but_not_the_padding(build, reference, pads):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = (nn.Embedding(VOCAB, 6, padding_idx=pad) for pad in pads)
            self.two.weight = self.one.weight
            self.double()

    def loss(m):
        return torch.tanh(m.one(IDS) + 2 * m.two(IDS.flip(1))).mean(1).square().sum()

    model = Shared()
    assert_same(step(build(model), model, loss), on_weights(model, loss, ["one.weight"], **reference))
    # a random start may move every token that gets a gradient from one of them
    pgd = PGD(model, random_init=True)
    loss(model).backward()
    free = pgd.taps[0].deltas()[0].free
    tokens = {t for module in (model.one, model.two) for t in IDS.flatten().tolist() if t != module.padding_idx}
    assert int(free.sum()) == len(tokens)
