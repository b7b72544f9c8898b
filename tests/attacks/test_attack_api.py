"""The ways to drive an attack in a plain loop: attack and restore, with blocks, closures, opening and closing."""

from __future__ import annotations

import pytest
import torch
from references import assert_same, batch, bert, classifier, gradients, loss_on, on_weights, step
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD

IDS, LABELS = batch(4, 7)
LOSS = loss_on(IDS, LABELS)
WORDS = ["word_embeddings.weight"]
GRANULARITY = pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])


def backward(model, loss_of=LOSS):
    loss_of(model).backward()


def plain(model):
    model.zero_grad()
    backward(model)
    return gradients(model)


@GRANULARITY
def test_attack_and_restore_are_the_with_block_and_the_step(granularity):
    model = classifier()
    fgm = FGM(model, 0.7, granularity=granularity)
    expected = step(fgm, model, LOSS)

    model.zero_grad()
    backward(model)
    with fgm.attack():
        backward(model)
    assert_same(gradients(model), expected)

    model.zero_grad()
    backward(model)
    fgm.attack()
    backward(model)
    fgm.restore()
    assert_same(gradients(model), expected)
    assert_same(plain(model), plain(classifier()))  # nothing of the perturbation is left


@pytest.mark.parametrize("random_init", [False, True])
@GRANULARITY
def test_pgd_attack_with_a_closure_is_its_step(granularity, random_init):
    model = classifier()
    pgd = PGD(model, granularity=granularity, random_init=random_init)
    pgd.stream.generator = torch.Generator().manual_seed(5)
    expected = step(pgd, model, LOSS)
    for use in ("with", "restore"):
        pgd.stream.generator.manual_seed(5)
        model.zero_grad()
        backward(model)
        block = pgd.attack(lambda: LOSS(model))
        if use == "with":
            with block:
                backward(model)
        else:
            backward(model)
            pgd.restore()
        assert_same(gradients(model), expected)
        assert_same(plain(model), plain(classifier()))


@GRANULARITY
@pytest.mark.parametrize("attack", [FGM, PGD])
def test_replace_in_a_with_block_needs_the_closure_alone(attack, granularity):
    model = classifier()
    attack = attack(model, replace=True, granularity=granularity)
    expected = step(attack, model, LOSS)
    model.zero_grad()
    with attack.attack(closure=lambda: LOSS(model)):
        backward(model)
    assert_same(gradients(model), expected)


def test_epsilon_of_one_attack():
    model = classifier()
    fgm = FGM(model, 0.7)
    for epsilon in (0.0, 2.0):
        model.zero_grad()
        backward(model)
        with fgm.attack(epsilon):
            backward(model)
        assert_same(gradients(model), on_weights(model, LOSS, WORDS, steps=[epsilon]))
    assert fgm.epsilon == 0.7


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), "word_embeddings"])
def test_epsilon_of_one_attack_is_checked(epsilon):
    model = classifier()
    fgm = FGM(model)
    backward(model)
    with pytest.raises(ValueError, match="`epsilon` to be a finite, non-negative number"):
        fgm.attack(epsilon)


def test_names_choose_among_the_embeddings_of_the_attack():
    model = bert()

    def loss(m):
        return m(input_ids=IDS, labels=LABELS).loss

    names = {n.split(".")[-2]: n for n, _ in model.named_parameters() if n.endswith("_embeddings.weight")}
    fgm = FGM(model, 0.7, emb_name="*_embeddings.weight")
    for emb_name in ("word_embeddings", "*position*"):
        model.zero_grad()
        backward(model, loss)
        with fgm.attack(emb_name=emb_name):
            backward(model, loss)
        chosen = [name for key, name in names.items() if emb_name.strip("*") in key]
        assert len(chosen) == 1
        assert_same(gradients(model), on_weights(model, loss, chosen, steps=[0.7]))
    with pytest.raises(ValueError, match=r"an embedding that this attack watches, but got 'head'.*word_embeddings"):
        fgm.attack(emb_name="head")


def test_restore_takes_off_the_named_perturbation_alone():
    model = bert()

    def loss(m):
        return m(input_ids=IDS, labels=LABELS).loss

    fgm = FGM(model, 0.7, emb_name="*_embeddings.weight")
    clean = loss(model).item()
    backward(model, loss)
    fgm.attack()
    moved = loss(model).item()
    fgm.restore("position")
    fewer = loss(model).item()
    fgm.restore()
    assert len({clean, moved, fewer}) == 3
    assert loss(model).item() == clean


def test_the_object_is_a_context_manager_and_can_be_opened_again():
    model = classifier()
    before = snapshot(model)
    with FGM(model, 0.7) as fgm:
        expected = step(fgm, model, LOSS)
        assert snapshot(model)[2] != before[2]
    assert_untouched(model, before)
    assert_same(step(fgm, model, LOSS), expected)  # a step opens and closes what it finds closed
    assert_untouched(model, before)
    with fgm:
        fgm.open()  # a second time does nothing
        model.zero_grad()
        backward(model)
        with fgm.attack():
            backward(model)
        assert_same(gradients(model), expected)
    fgm.close()
    assert_untouched(model, before)


def test_close_takes_the_perturbation_off():
    model = classifier()
    fgm = FGM(model, 0.7)
    backward(model)
    fgm.attack()
    fgm.close()
    assert_same(plain(model), plain(classifier()))


@pytest.mark.parametrize("attack", [FGM, PGD])
def test_attacks_that_come_too_early_say_so(attack):
    model = classifier()
    attack = attack(model)
    arguments = (lambda: LOSS(model),) if isinstance(attack, PGD) else ()
    with pytest.raises(RuntimeError, match=r"to look up embedding `word_embeddings.weight`, but it never"):
        attack.attack(*arguments)
    kept = LOSS(model)
    with pytest.raises(RuntimeError, match=r"Expected a backward pass .* Call `loss.backward\(\)` first"):
        attack.attack(*arguments)
    kept.backward()
    attack.attack(*arguments)
    attack.close()
    backward(model)
    with pytest.raises(RuntimeError, match=r"closed. Call `open\(\)` first"):
        attack.attack(*arguments)


def test_two_attacks_in_a_row_need_a_backward_pass_in_between():
    model = classifier()
    fgm = FGM(model)
    backward(model)
    with fgm.attack(), pytest.raises(RuntimeError, match="a backward pass through the lookups"):
        fgm.attack()
    assert_same(plain(model), plain(classifier()))
