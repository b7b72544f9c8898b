"""PGD in plain loops gives the gradients of the textbook: ascend on a copy of the weights, project, train, restore."""

from __future__ import annotations

import pytest
import torch
from references import (
    assert_same,
    batch,
    bert,
    classifier,
    classifier_from,
    differ,
    loss_on,
    on_positions,
    on_weights,
    shrink,
    step,
    words,
)
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD

NORM = pytest.mark.parametrize("norm", ["l2", "linf"])
IDS, LABELS = batch(4, 7)
IDS[0] = 9  # one token in all places of an example
IDS[:2, 5:] = 0
LOSS = loss_on(IDS, LABELS)
WORDS = ["word_embeddings.weight"]


@NORM
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("epsilon", "alpha"), [(0.5, 0.3), (2.0, 0.3), (0.1, 0.3)])  # reach the surface, stay inside
def test_vocab_is_a_perturbation_of_the_weight(epsilon, alpha, steps, norm):
    model = classifier()
    before = snapshot(model)
    pgd = PGD(model, epsilon, alpha=alpha, steps=steps, norm=norm)
    found = step(pgd, model, LOSS)
    pgd.close()
    assert_same(found, on_weights(model, LOSS, WORDS, steps=[alpha] * steps, radius=epsilon, norm=norm))
    assert_untouched(model, before)


@NORM
@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize("steps", [1, 3])
def test_positions_are_a_perturbation_of_the_embedded_input(steps, granularity, norm):
    model = classifier()
    found = step(PGD(model, 0.5, alpha=0.3, steps=steps, granularity=granularity, norm=norm), model, LOSS)
    expected = on_positions(
        model,
        IDS,
        classifier_from(LABELS),
        words,
        per_token=granularity == "token",
        steps=[0.3] * steps,
        radius=0.5,
        norm=norm,
    )
    assert_same(found, expected)


def test_several_embeddings_have_a_ball_each():
    model = bert()

    def loss(m):
        return m(input_ids=IDS, labels=LABELS).loss

    names = [n for n, _ in model.named_parameters() if n.endswith("_embeddings.weight")]
    found = step(PGD(model, 0.5, alpha=0.3, emb_name="_embeddings"), model, loss)
    assert_same(found, on_weights(model, loss, names, steps=[0.3] * 3, radius=0.5))


@NORM
@pytest.mark.parametrize("replace", [False, True])
def test_a_random_start_of_the_weight_is_reproducible(norm, replace):
    """The start is read off the lookups of the first inner pass; the reference ascends from it."""
    model = classifier()
    pgd = PGD(model, 0.5, alpha=0.3, steps=2, random_init=True, norm=norm, replace=replace)
    starts = []
    for _ in range(2):
        pgd.stream.generator = torch.Generator().manual_seed(7)
        found, start = step_and_start(pgd, model)
        rows = torch.zeros_like(model.word_embeddings.weight)
        rows[IDS] = start
        starts.append(rows)
    assert torch.equal(*starts)
    start = starts[0]
    assert start[0].eq(0).all()  # padding
    assert sorted(start.abs().sum(1).nonzero().flatten().tolist()) == sorted({*IDS.flatten().tolist()} - {0})
    assert 0 < (start.norm() if norm == "l2" else start.abs().max()) <= 0.5
    expected = on_weights(
        model, LOSS, WORDS, steps=[0.3] * 2, radius=0.5, norm=norm, replace=replace, start={WORDS[0]: start}
    )
    assert_same(found, expected)


@NORM
@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_a_random_start_of_positions(granularity, norm):
    model = classifier()
    pgd = PGD(model, 0.5, alpha=0.3, steps=2, random_init=True, granularity=granularity, norm=norm)
    found, start = step_and_start(pgd, model)
    assert start[IDS == 0].eq(0).all()
    groups = start.flatten(0, 1) if granularity == "token" else start
    for group in groups:
        assert torch.allclose(group, shrink(group, 0.5, norm))
    assert len({round(float(group.norm()), 9) for group in groups}) >= len(LABELS)  # each its own length
    expected = on_positions(
        model,
        IDS,
        classifier_from(LABELS),
        words,
        per_token=granularity == "token",
        steps=[0.3] * 2,
        radius=0.5,
        norm=norm,
        start=[start],
    )
    assert_same(found, expected)


def step_and_start(pgd, model):
    """The gradients of a step, and what its second forward pass added to the lookups."""
    deltas = []
    weight = model.word_embeddings.weight

    def look(module, args, output):
        deltas.append((output - weight[IDS]).detach())

    handle = model.word_embeddings.register_forward_hook(look)  # after the attack's own
    found = step(pgd, model, LOSS)
    handle.remove()
    assert deltas[-4 if pgd.random_init else -3].eq(0).all()
    return found, deltas[-3]


def test_one_step_as_long_as_the_ball_is_fgm():
    model = classifier()
    assert_same(step(PGD(model, 0.7, alpha=0.7, steps=1), model, LOSS), step(FGM(model, 0.7), model, LOSS))


def test_the_steps_differ():
    model = classifier()
    found = [step(PGD(model, 0.5, steps=steps), model, LOSS) for steps in (1, 2, 3)]
    assert differ(found[0], found[1]) > 1e-3
    assert differ(found[1], found[2]) > 1e-5
