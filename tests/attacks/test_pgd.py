"""PGD in plain loops gives the gradients of the textbook: ascend on a copy of the weights, project, train, restore."""

from __future__ import annotations

import math

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
    name_of,
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
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
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


@pytest.mark.parametrize(("adv_weight", "replace"), [(0.3, False), (2.0, True)])
@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
def test_bert(granularity, adv_weight, replace):
    model = bert()

    def loss(m):
        return m(input_ids=IDS, attention_mask=(IDS != 0).long(), labels=LABELS).loss

    def loss_from(m, embedded):
        return m(inputs_embeds=embedded, attention_mask=(IDS != 0).long(), labels=LABELS).loss

    arguments = {"adv_weight": adv_weight, "replace": replace}
    found = step(PGD(model, 0.5, alpha=0.3, granularity=granularity, **arguments), model, loss)
    arguments.update({"steps": [0.3] * 3, "radius": 0.5})
    if granularity == "vocab":
        expected = on_weights(model, loss, [name_of(model)], **arguments)
    else:
        expected = on_positions(model, IDS, loss_from, words, per_token=False, **arguments)
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


def test_each_step_starts_elsewhere():
    torch.manual_seed(0)
    model = classifier()
    pgd = PGD(model, 0.5, alpha=0.3, steps=2, random_init=True)
    starts = [step_and_start(pgd, model)[1] for _ in range(2)]
    pgd.close()
    assert not torch.equal(*starts)
    lengths = []
    for _ in range(200):
        passes = pgd.passes()
        with pgd:
            next(passes)
            LOSS(model).backward()
            next(passes)
            with torch.no_grad():
                delta = model.word_embeddings(IDS) - model.word_embeddings.weight[IDS]
        rows = torch.zeros_like(model.word_embeddings.weight)
        rows[IDS] = delta
        lengths.append(rows.norm())
    # uniform in [0, 0.5]: repeated tokens and padding take no part of the length; 4 standard errors
    assert torch.stack(lengths).mean().item() == pytest.approx(0.25, abs=4 * 0.5 / math.sqrt(12 * 200))


def test_one_step_as_long_as_the_ball_is_fgm():
    model = classifier()
    assert_same(step(PGD(model, 0.7, alpha=0.7, steps=1), model, LOSS), step(FGM(model, 0.7), model, LOSS))


@NORM
def test_more_steps_find_a_higher_loss(norm):
    """What the method is for. In a cube the second step may already end in the best corner."""
    model = classifier()
    epsilon = 0.5 if norm == "l2" else 0.1
    losses = []
    for steps in (1, 2, 6):
        pgd = PGD(model, epsilon, alpha=epsilon / 2, steps=steps, norm=norm)
        LOSS(model).backward()
        with pgd.attack(lambda: LOSS(model)), torch.no_grad():
            losses.append(LOSS(model).item())
        pgd.close()
    assert LOSS(model).item() < losses[0] < losses[1] <= losses[2]
    assert norm == "linf" or losses[1] < losses[2]


def test_the_steps_differ():
    model = classifier()
    found = [step(PGD(model, 0.5, steps=steps), model, LOSS) for steps in (1, 2, 3)]
    assert differ(found[0], found[1]) > 1e-3
    assert differ(found[1], found[2]) > 1e-5
