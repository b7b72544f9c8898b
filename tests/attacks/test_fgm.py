"""FGM and FGSM in plain loops give the gradients of the textbook, which perturbs the weights or the embedded inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    IDS,
    LOSS,
    MODELS,
    assert_same,
    batch,
    classifier,
    classifier_from,
    differ,
    each_granularity,
    loss_on,
    step,
    textbook,
)
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, FGSM


@pytest.mark.parametrize(("make", "loss_of", "loss_from"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@each_granularity
@pytest.mark.parametrize(("adv_weight", "replace"), [(0.3, False), (2.0, True)])
def test_a_step_is_that_of_the_textbook(make, loss_of, loss_from, norm, granularity, adv_weight, replace):
    model = make()
    before = snapshot(model)
    arguments = {"norm": norm, "adv_weight": adv_weight, "replace": replace}
    attack = FGM(model, 0.7, granularity=granularity, **arguments)
    found = step(attack, model, loss_of)
    attack.close()
    assert_same(found, textbook(model, granularity, loss_of, IDS, loss_from, steps=[0.7], **arguments))
    assert_untouched(model, before)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    epsilon=st.floats(0, 5),
    granularity=st.sampled_from(["vocab", "sequence", "token"]),
    norm=st.sampled_from(["l2", "linf"]),
    vocab=st.sampled_from([1, 3, 50]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_any_batch(shape, epsilon, granularity, norm, vocab, seed):
    """Repeated tokens, padding alone, one position, no perturbation."""
    ids, labels = batch(*shape, vocab=vocab, seed=seed)
    model, loss = classifier(seed=seed), loss_on(ids, labels)
    found = step(FGM(model, epsilon, granularity=granularity, norm=norm), model, loss)
    assert_same(found, textbook(model, granularity, loss, ids, classifier_from(labels), steps=[epsilon], norm=norm))


def test_the_granularities_and_norms_differ():
    """Or the tests above would show little."""
    model = classifier()
    plain = step(FGM(model, 0.0), model, LOSS)
    kinds = [("vocab", "l2"), ("vocab", "linf"), ("sequence", "l2"), ("token", "l2"), ("token", "linf")]
    found = [step(FGM(model, 0.7, granularity=kind, norm=norm), model, LOSS) for kind, norm in kinds]
    for i, one in enumerate([plain, *found]):
        assert all(differ(one, other) > 1e-3 for other in found[i:])


@each_granularity
def test_fgsm_is_fgm_along_the_sign(granularity):
    model = classifier()
    found = step(FGSM(model, granularity=granularity), model, LOSS)
    assert_same(found, step(FGM(model, 0.003, granularity=granularity, norm="linf"), model, LOSS))
    found = step(FGSM(model, 0.5, norm="l2", granularity=granularity), model, LOSS)
    assert_same(found, step(FGM(model, 0.5, granularity=granularity), model, LOSS))


def test_the_direction_is_that_of_finite_differences():
    """Nothing but forward passes: moving the rows of the batch's tokens, one number after another."""
    model = classifier()
    weight, h = model.word_embeddings.weight, 1e-6
    slope = torch.zeros_like(weight)
    with torch.no_grad():
        for token in set(IDS.flatten().tolist()) - {0}:
            for i in range(weight.shape[1]):
                weight[token, i] += h
                up = LOSS(model)
                weight[token, i] -= 2 * h
                slope[token, i] = (up - LOSS(model)) / (2 * h)
                weight[token, i] += h
    fgm = FGM(model, 0.7)
    LOSS(model).backward()
    with fgm.attack(), torch.no_grad():
        delta = model.word_embeddings(IDS) - weight[IDS]
    assert torch.allclose(delta, 0.7 * (slope / slope.norm())[IDS], atol=1e-7)
    assert fgm.grad_norm.item() == pytest.approx(slope.norm().item())
    assert fgm.perturbation_norm.item() == pytest.approx(0.7)
    assert fgm.skipped.item() == 0
