"""What else goes on in a hand-written loop: evaluation, logging, accumulation, attacks now and then, and memory."""

from __future__ import annotations

import gc

import pytest
import torch
from references import (
    ATTACKS,
    add,
    assert_same,
    batch,
    classifier,
    classifier_from,
    gradients,
    loss_on,
    on_positions,
    on_weights,
    words,
)

from fastnlp_adv import FGM, PGD

BATCHES = [batch(4, 7, seed=seed) for seed in range(4)]
GRANULARITY = pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])


def expected_of(model, number, granularity, reference):
    ids, labels = BATCHES[number]
    if granularity == "vocab":
        return on_weights(model, loss_on(ids, labels), ["word_embeddings.weight"], **reference)
    per_token = granularity == "token"
    return on_positions(model, ids, classifier_from(labels), words, per_token=per_token, **reference)


def run(attack, model, number):
    """A clean pass and an adversarial one, as a user writes them."""
    loss = loss_on(*BATCHES[number])
    loss(model).backward()
    with attack.attack(**({"closure": lambda: loss(model)} if isinstance(attack, PGD) else {})):
        loss(model).backward()


def evaluate(model, how):
    """What may come between two steps."""
    ids, labels = batch(6, 5, seed=11)
    if how == "no_grad":
        with torch.no_grad():
            model(ids)
    elif how == "inference":
        with torch.inference_mode():
            model(ids)
    elif how == "grad":
        model(ids)
    elif how == "grad, same shape":
        model(BATCHES[3][0])
    elif how == "grad, twice, and kept":
        return [loss_on(ids, labels)(model), model(BATCHES[0][0])]
    elif how == "backward":
        loss_on(ids, labels)(model).backward()
        model.zero_grad()
    return None


@ATTACKS
@GRANULARITY
@pytest.mark.parametrize("how", ["inference", "grad, twice, and kept", "backward"])
def test_forwards_before_and_between_steps(build, reference, granularity, how):
    model = classifier()
    attack = build(model, granularity=granularity)
    for number in (0, 1):
        kept = evaluate(model, how)
        model.zero_grad()
        run(attack, model, number)
        assert_same(gradients(model), expected_of(model, number, granularity, reference))
        del kept


@ATTACKS
@GRANULARITY
@pytest.mark.parametrize("api", ["block", "step"])
def test_micro_batches_go_along_their_own_gradients(build, reference, granularity, api):
    model = classifier()
    attack = build(model, granularity=granularity)
    expected = None
    for number in range(4):
        if api == "block":
            run(attack, model, number)
        else:
            attack.step(lambda number=number: loss_on(*BATCHES[number])(model))
        own = expected_of(model, number, granularity, reference)
        expected = own if expected is None else add(expected, own)
    assert_same(gradients(model), expected)


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(("granularity", "perturbed"), [("vocab", False), ("vocab", True), ("token", False)])
def test_forwards_without_a_backward_pass_leave_nothing(granularity, perturbed, young_heap):
    model = classifier()
    fgm = FGM(model, granularity=granularity)
    loss_on(*BATCHES[0])(model).backward()
    if perturbed:
        fgm.attack()
    model(BATCHES[1][0].clone())
    alive = tensors_alive()
    for _ in range(20):
        model(BATCHES[1][0].clone())
        with torch.no_grad():
            model(BATCHES[1][0].clone())
    assert tensors_alive() <= alive
