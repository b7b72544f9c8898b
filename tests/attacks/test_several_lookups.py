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
    on_positions,
    on_weights,
    step,
)
from support import VOCAB
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import PGD

IDS, LABELS = batch(4, 7, vocab=12)
WORDS = ["word_embeddings.weight"]


@ATTACKS
@pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])
@pytest.mark.parametrize("shapes", [((4, 7), (4, 7)), ((4, 7), (4, 2)), ((4, 3), (1, 7))], ids=str)
def test_two_lookups_in_a_forward(build, reference, granularity, shapes):
    left, right = (batch(*shape, vocab=12, seed=seed)[0] for seed, shape in enumerate(shapes))
    model = Siamese(padding_idx=3)

    def loss(m):
        return m(left, right)

    found = step(build(model, granularity=granularity), model, loss)
    if granularity == "vocab":
        expected = on_weights(model, loss, ["emb.weight"], **reference)
    else:
        expected = on_positions(
            model, [left, right], Siamese.compare, lambda m: m.emb, per_token=granularity == "token", **reference
        )
    assert_same(found, expected)


@ATTACKS
@pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])
def test_two_forwards_before_one_backward(build, reference, granularity):
    """R-Drop with two passes: here each its own noise of a fixed kind, so that the two differ."""
    model = classifier()

    def combine(one, other):
        return cross_entropy(one, LABELS) + 0.5 * cross_entropy(2 * other, LABELS) + (one - other * 0.9).square().mean()

    def loss_from(m, first, second):
        return combine(*(m.head(m.rnn(embedded)[0].mean(1)) for embedded in (first, second)))

    found = step(build(model, granularity=granularity), model, lambda m: combine(m(IDS), m(IDS)))
    if granularity == "vocab":
        expected = on_weights(model, lambda m: combine(m(IDS), m(IDS)), WORDS, **reference)
    else:
        per_token = granularity == "token"
        expected = on_positions(
            model, [IDS, IDS], loss_from, lambda m: m.word_embeddings, per_token=per_token, **reference
        )
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
