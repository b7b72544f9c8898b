"""FreeLB trains on the mean loss along the ascent of its definition, written out on embedded inputs."""

from __future__ import annotations

import pytest
import torch
from references import (
    IDS,
    LABELS,
    LOSS,
    Siamese,
    additions,
    along_an_ascent,
    assert_same,
    batch,
    classifier,
    differ,
    direction,
    gradients,
    loss_on,
    loss_with,
    noise_on,
    same_noise,
    shrink,
)
from support import assert_untouched, snapshot

from fastnlp_adv.attacks.freelb import FreeLB


def reference(ids, loss_at, generator, width=8, *, epsilon, alpha, init, padding_idx=0, **passes):
    """Adds the gradients of a step to those of the parameters; returns what was added in each pass."""

    def ascend(d, grad, row):
        real = (row != padding_idx).unsqueeze(-1)
        d += alpha * direction(grad * real, "l2")
        if epsilon > 0:
            d.copy_(shrink(d, epsilon, "l2"))

    starts = [[noise_on(i, width, init, generator, padding_idx)] for i in ids]
    return along_an_ascent(ids, starts, loss_at, ascend, **passes)


def step(attack, model, loss=LOSS):
    model.zero_grad()
    attack.step(lambda: loss(model))
    return gradients(model)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 5.0])  # no ball, one that is left and one that is not
@pytest.mark.parametrize("clean", [False, True])
def test_a_step(epsilon, steps, clean):
    model = classifier()
    before = snapshot(model)
    arguments = {"epsilon": epsilon, "alpha": 0.2, "steps": steps, "init": 1.0, "clean": clean}
    attack = FreeLB(model, **arguments)
    generator = same_noise(attack)
    found = [step(attack, model) for _ in range(2)]
    attack.close()
    assert_untouched(model, before)
    for each in found:
        model.zero_grad()
        reference([IDS], loss_with(model, IDS, LABELS), generator, **arguments)
        assert_same(each, gradients(model))
    assert differ(*found) > 1e-4  # each step draws its own noise


def test_with_a_fraction_the_clean_pass_is_on_all_and_the_others_on_the_attacked_rows():
    model = classifier()
    sizes = {"epsilon": 0.15, "alpha": 0.1, "init": 0.5, "steps": 3}
    rows = FreeLB(classifier(), clean=True, fraction=0.5).choose(len(IDS))
    attack = FreeLB(model, **sizes, clean=True, fraction=0.5)
    generator = same_noise(attack)
    attack.step(lambda part: loss_on(part["ids"], part["labels"])(model), {"ids": IDS, "labels": LABELS})
    found = gradients(model)
    model.zero_grad()
    LOSS(model).backward()
    reference([IDS[rows]], loss_with(model, IDS[rows], LABELS[rows]), generator, **sizes)
    assert_same(found, gradients(model))


def test_a_fraction_needs_the_clean_pass_and_a_new_dropout_mask():
    with pytest.raises(ValueError, match="Expected `clean` to be True with a `fraction` below 1, but got False"):
        FreeLB(fraction=0.5)
    with pytest.raises(ValueError, match="Expected `dropout_mask` to be 'new' with a `fraction` below 1"):
        FreeLB(clean=True, fraction=0.5, dropout_mask="same")


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_two_lookups_in_a_forward(padding_idx):
    left, right = (batch(4, n, vocab=12, seed=seed)[0] for seed, n in enumerate((7, 2)))
    model = Siamese(padding_idx=padding_idx)
    arguments = {"epsilon": 0.2, "alpha": 0.1, "steps": 3, "init": 0.5}
    attack = FreeLB(model, **arguments)
    generator = same_noise(attack)
    found = step(attack, model, lambda m: m(left, right))
    attack.close()
    model.zero_grad()
    padding = -1 if padding_idx is None else padding_idx
    reference([left, right], model.at(left, right), generator, 6, padding_idx=padding, **arguments)
    assert_same(found, gradients(model))


def test_perturbations_and_their_report():
    model = classifier()
    attack = FreeLB(model, epsilon=0.15, steps=3)
    generator = same_noise(attack)
    with additions(model.word_embeddings, IDS) as found:
        attack.step(lambda: LOSS(model))
    wanted = reference([IDS], loss_with(model, IDS, LABELS), generator, epsilon=0.15, alpha=0.1, steps=3, init=0.05)
    torch.testing.assert_close(torch.stack(found), torch.stack([d for (d,) in wanted]))
    assert attack.perturbation_norm.item() == pytest.approx(found[-1].norm().item())
    assert found[-1].flatten(1).norm(dim=1).max() == pytest.approx(0.15)
    assert attack.skipped.item() == 0
