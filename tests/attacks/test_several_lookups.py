"""Several lookups of one embedding, several embeddings, and weights that are looked up and used otherwise too."""

from __future__ import annotations

import pytest
import torch
from references import (
    ATTACKS,
    Siamese,
    add,
    assert_same,
    batch,
    classifier,
    differ,
    loss_on,
    on_positions,
    on_weights,
    step,
)
from support import CLASSES, VOCAB
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import PGD

IDS, LABELS = batch(4, 7, vocab=12)
LOSS = loss_on(IDS, LABELS)
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
@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("detached", [0, 1])
def test_a_lookup_without_gradient_keeps_still_and_its_place(build, reference, granularity, detached):
    """A stop-gradient on one side of a siamese network."""
    left, right = batch(4, 7, vocab=12)[0], batch(4, 7, vocab=12, seed=1)[0]
    model = Siamese()

    def sides(m, *embedded):
        return [e.detach() if side == detached else e for side, e in enumerate(embedded)]

    def loss(m):
        return m.compare(*sides(m, m.emb(left), m.emb(right)))

    def loss_from(m, embedded):
        fixed = m.emb([left, right][detached]).detach()
        return m.compare(*([fixed, embedded] if detached == 0 else [embedded, fixed]))

    moved = [left, right][1 - detached]
    found = step(build(model, granularity=granularity), model, loss)
    per_token = granularity == "token"
    assert_same(found, on_positions(model, moved, loss_from, lambda m: m.emb, per_token=per_token, **reference))


@ATTACKS
def test_several_matched_embeddings_have_a_norm_each(build, reference):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.emb = nn.ModuleDict({"words": nn.Embedding(VOCAB, 6), "tags": nn.Embedding(12, 6, padding_idx=0)})
            self.head = nn.Linear(6, CLASSES)
            self.double()

        def forward(self, ids):
            return self.head(torch.tanh(self.emb["words"](ids) + 3 * self.emb["tags"](11 - ids)).mean(1))

    model = Two()
    found = step(build(model, "emb"), model, LOSS)
    assert_same(found, on_weights(model, LOSS, ["emb.words.weight", "emb.tags.weight"], **reference))


@ATTACKS
def test_a_tied_output_layer_is_not_perturbed(build, reference):
    """Only what is looked up moves: the reference unties the model and perturbs the input side."""

    class Tagger(nn.Module):
        def __init__(self, tied):
            super().__init__()
            torch.manual_seed(0)
            self.emb = nn.Embedding(VOCAB, 6)
            self.out = nn.Linear(6, VOCAB, bias=False)
            self.out.weight = self.emb.weight if tied else nn.Parameter(self.emb.weight.detach().clone())
            self.double()

        def forward(self, ids):
            return self.out(torch.tanh(self.emb(ids)).cumsum(1)).flatten(0, 1)

    tied, untied = Tagger(True), Tagger(False)
    untied.out.weight = nn.Parameter(untied.emb.weight.detach().clone())
    loss = loss_on(IDS, IDS.roll(1, 1).flatten())
    found = step(build(tied), tied, loss)
    expected = on_weights(untied, loss, ["emb.weight"], **reference)
    both = add({"emb.weight": expected["emb.weight"]}, {"emb.weight": expected["out.weight"]})
    assert_same(found, both)
    assert differ(found, on_weights(tied, loss, ["emb.weight"], **reference)) > 1e-3


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
