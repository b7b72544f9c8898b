"""The ways to drive an attack in a plain loop: attack and restore, with blocks, closures, opening and closing."""

from __future__ import annotations

import pytest
from references import (
    LOSS,
    assert_same,
    bert,
    bert_loss,
    classifier,
    each_granularity,
    gradients,
    on_weights,
    same_noise,
    step,
)
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD

WORDS = ["word_embeddings.weight"]
ATTACKS = {
    "fgm": FGM,
    "fgm-replace": lambda m, **k: FGM(m, replace=True, **k),
    "pgd": PGD,
    "pgd-random": lambda m, **k: PGD(m, random_init=True, **k),
    "pgd-replace": lambda m, **k: PGD(m, replace=True, **k),
}


def backward(model, loss_of=LOSS):
    loss_of(model).backward()


def plain(model):
    model.zero_grad()
    backward(model)
    return gradients(model)


@pytest.mark.parametrize("build", ATTACKS.values(), ids=ATTACKS)
@each_granularity
@pytest.mark.parametrize("ends_by", ["with", "restore"])
def test_an_attack_around_a_backward_pass_is_the_step(build, granularity, ends_by):
    """The closure is for passes of the attack's own; with `replace` no pass comes before."""
    model = classifier()
    attack = build(model, granularity=granularity)
    same_noise(attack)
    expected = step(attack, model, LOSS)
    same_noise(attack)
    model.zero_grad()
    if not attack.replace:
        backward(model)
    block = attack.attack(**({"closure": lambda: LOSS(model)} if attack.replace or isinstance(attack, PGD) else {}))
    if ends_by == "with":
        with block:
            backward(model)
    else:
        backward(model)
        attack.restore()
    assert_same(gradients(model), expected)
    assert_same(plain(model), plain(classifier()))  # nothing of the perturbation is left


@pytest.mark.parametrize("epsilon", [0.0, 2.0])
def test_epsilon_of_one_attack(epsilon):
    model = classifier()
    fgm = FGM(model, 0.7)
    backward(model)
    with fgm.attack(epsilon):
        backward(model)
    assert_same(gradients(model), on_weights(model, LOSS, WORDS, steps=[epsilon]))
    assert fgm.epsilon == 0.7
    with pytest.raises(ValueError, match="`epsilon` to be a finite, non-negative number, but got 'word_embeddings'"):
        fgm.attack("word_embeddings")


@pytest.mark.parametrize("emb_name", ["word_embeddings", "*position*"])
def test_names_choose_among_the_embeddings_of_the_attack(emb_name):
    model = bert()
    (chosen,) = [name for name, _ in model.named_parameters() if emb_name.strip("*") in name]
    fgm = FGM(model, 0.7, emb_name="*_embeddings.weight")
    backward(model, bert_loss)
    with fgm.attack(emb_name=emb_name):
        backward(model, bert_loss)
    assert_same(gradients(model), on_weights(model, bert_loss, [chosen], steps=[0.7]))
    with pytest.raises(ValueError, match=r"an embedding that this attack watches, but got 'head'.*word_embeddings"):
        fgm.attack(emb_name="head")


def test_restore_takes_off_the_named_perturbation_alone():
    model = bert()
    fgm = FGM(model, 0.7, emb_name="*_embeddings.weight")
    clean = bert_loss(model).item()
    backward(model, bert_loss)
    fgm.attack()
    moved = bert_loss(model).item()
    fgm.restore("position")
    fewer = bert_loss(model).item()
    fgm.restore()
    assert len({clean, moved, fewer}) == 3
    assert bert_loss(model).item() == clean


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


@pytest.mark.parametrize("attack", [FGM, PGD])
def test_attacks_that_come_too_early_or_late_say_so(attack):
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
    assert_same(plain(model), plain(classifier()))  # the perturbation is off
    with pytest.raises(RuntimeError, match=r"closed. Call `open\(\)` first"):
        attack.attack(*arguments)


def test_two_attacks_in_a_row_need_a_backward_pass_in_between():
    model = classifier()
    fgm = FGM(model)
    backward(model)
    with fgm.attack(), pytest.raises(RuntimeError, match="a backward pass through the lookups"):
        fgm.attack()
    assert_same(plain(model), plain(classifier()))
