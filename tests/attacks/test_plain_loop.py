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
    on_weights,
    textbook,
)

from fastnlp_adv import FGM, PGD

BATCHES = [batch(3, 4, seed=seed) for seed in range(4)]
WAYS = [{"granularity": granularity} for granularity in ("vocab", "sequence", "token")] + [{"emb_name": "head.weight"}]
each_way = pytest.mark.parametrize("way", WAYS, ids=str)


def expected_of(model, number, way, reference):
    ids, labels = BATCHES[number]
    loss = loss_on(ids, labels)
    if "emb_name" in way:
        return on_weights(model, loss, [way["emb_name"]], **reference)
    return textbook(model, way["granularity"], loss, ids, classifier_from(labels), **reference)


def run(attack, model, number):
    """A clean pass and an adversarial one, as a user writes them."""
    loss = loss_on(*BATCHES[number])
    loss(model).backward()
    with attack.attack(**({"closure": lambda: loss(model)} if isinstance(attack, PGD) else {})):
        loss(model).backward()


MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


def evaluate(model, how):
    """What may come between two steps."""
    ids, labels = batch(6, 5, seed=11)
    if how in MODES:
        with MODES[how]():
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
@each_way
@pytest.mark.parametrize("how", [*MODES, "grad, same shape", "grad, twice, and kept", "backward"])
def test_forwards_before_and_between_steps(build, reference, way, how):
    model = classifier()
    attack = build(model, **way)
    for number in (0, 1):
        kept = evaluate(model, how)
        model.zero_grad()
        run(attack, model, number)
        assert_same(gradients(model), expected_of(model, number, way, reference))
        del kept


@each_way
@pytest.mark.parametrize(
    ("where", "how"),
    [
        *(("before", how) for how in (*MODES, "grad, twice, and kept")),
        *(("inside", how) for how in ("no_grad", "inference")),
    ],
)
def test_forwards_between_the_backward_pass_and_the_end_of_the_attack(way, where, how):
    """The accuracy of the batch, say. The attack goes along the gradient of the last backward pass."""
    model = classifier()
    fgm = FGM(model, 0.7, **way)
    loss = loss_on(*BATCHES[0])
    loss(model).backward()
    kept = evaluate(model, how) if where == "before" else None
    with fgm.attack():
        if where == "inside":
            evaluate(model, how)
        loss(model).backward()
    assert_same(gradients(model), expected_of(model, 0, way, {"steps": [0.7]}))
    del kept


@each_way
def test_two_backward_passes_under_one_perturbation(way):
    """Each is as the first."""
    model = classifier()
    fgm = FGM(model, 0.7, **way)
    loss = loss_on(*BATCHES[0])
    loss(model).backward()
    clean = gradients(model)
    with fgm.attack():
        loss(model).backward()
        loss(model).backward()
    once = add(expected_of(model, 0, way, {"steps": [0.7]}), clean, -1.0)
    assert_same(gradients(model), add(clean, once, 2.0))


@ATTACKS
@each_way
def test_micro_batches_go_along_their_own_gradients(build, reference, way):
    model = classifier()
    attack = build(model, **way)
    for number in (0, 1):
        run(attack, model, number)
    first, second = (expected_of(model, number, way, reference) for number in (0, 1))
    assert_same(gradients(model), add(first, second))


def test_a_second_backward_pass_through_the_same_graph():
    """Two losses, one forward pass: the gradients add up."""
    model = classifier()
    fgm = FGM(model, 0.7)
    ids, labels = BATCHES[0]

    def losses(m):
        logits = m(ids)
        return torch.nn.functional.cross_entropy(logits, labels), 0.1 * logits.square().sum()

    first, second = losses(model)
    first.backward(retain_graph=True)
    second.backward()
    with fgm.attack():
        sum(losses(model)).backward()
    expected = on_weights(model, lambda m: sum(losses(m)), ["word_embeddings.weight"], steps=[0.7])
    assert_same(gradients(model), expected)


@pytest.fixture
def uncollected(young_heap):
    """Without the cyclic collector: what is in no cycle goes at once."""
    gc.disable()
    yield
    gc.enable()


def tensors_after(steps, attack, api="step"):
    for _ in range(steps):
        attack.model.zero_grad()
        if api == "block":
            run(attack, attack.model, 0)
        else:
            attack.step(lambda: loss_on(*BATCHES[0])(attack.model))
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@each_way
@pytest.mark.parametrize("attack", [FGM, PGD])
@pytest.mark.parametrize("api", ["block", "step"])
def test_no_tensor_waits_for_the_cyclic_collector(attack, way, api, uncollected):
    attack = attack(classifier(), **way)
    attack.learning.note = lambda *_: ""  # which keeps losses
    assert tensors_after(3, attack, api) == tensors_after(7, attack, api)


def test_losses_are_kept_of_the_beginning_and_of_late_alone(uncollected):
    attack = FGM(classifier())
    assert tensors_after(50, attack) == tensors_after(3, attack)


@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
@pytest.mark.parametrize("perturbed", [False, True])
def test_forwards_without_a_backward_pass_leave_nothing(granularity, perturbed, uncollected):
    """Neither tensors nor what else a tap could note of each."""
    model = classifier()
    fgm = FGM(model, granularity=granularity)
    ids = BATCHES[0][0]

    def objects(number):
        for _ in range(number):
            if perturbed:
                with fgm.attack():
                    model(ids)
                loss_on(*BATCHES[0])(model).backward()
                model.zero_grad()
            model(ids)
        return len(gc.get_objects())

    if perturbed:
        loss_on(*BATCHES[0])(model).backward()
    fgm.learning.note = lambda *_: ""
    objects(5)
    # A tap that noted each forward would hold an object of its own for each.
    assert objects(100) - objects(1) < 50
