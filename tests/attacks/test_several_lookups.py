"""Several lookups of one embedding, several embeddings, and weights that are looked up and used otherwise too."""

from __future__ import annotations

import pytest
import torch
from references import (
    ATTACKS,
    Siamese,
    assert_same,
    batch,
    classifier,
    each_granularity,
    on_weights,
    step,
    textbook,
)
from support import VOCAB
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import PGD

IDS, LABELS = batch(4, 7, vocab=12)


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
    """R-Drop with two passes: here each its own noise of a fixed kind, so that the two differ."""
    model = classifier()

    def combine(one, other):
        return cross_entropy(one, LABELS) + 0.5 * cross_entropy(2 * other, LABELS) + (one - other * 0.9).square().mean()

    def loss_from(m, first, second):
        return combine(*(m.head(m.rnn(embedded)[0].mean(1)) for embedded in (first, second)))

    def loss(m):
        return combine(m(IDS), m(IDS))

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
