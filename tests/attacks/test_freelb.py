"""FreeLB trains on the mean loss along the ascent of its definition, written out on embedded inputs."""

from __future__ import annotations

import math

import pytest
import torch
from references import (
    Siamese,
    assert_same,
    batch,
    classifier,
    differ,
    direction,
    gradients,
    loss_on,
    shrink,
    words,
)
from support import assert_untouched, snapshot
from torch.nn.functional import cross_entropy

from fastnlp_adv.attacks.freelb import FreeLB

IDS, LABELS = batch(4, 7)
IDS[0] = 9  # one token in all places of an example
IDS[:2, 5:] = 0
LOSS = loss_on(IDS, LABELS)


def start(ids, width, init, generator, padding_idx=0):
    """Noise on real tokens, times init / sqrt(n H), with n counted by hand."""
    noise = torch.empty(*ids.shape, width, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    for example, row in enumerate(ids.tolist()):
        tokens = sum(i != padding_idx for i in row)
        for place, i in enumerate(row):
            noise[example, place] *= init / math.sqrt(tokens * width) if i != padding_idx else 0.0
    return noise


def reference(ids, loss_at, generator, width, *, epsilon, alpha, steps, init, clean=False, padding_idx=0):
    """
    Adds the gradients of a step to those of the parameters.

    :param ids: those of each lookup.
    :param loss_at: the loss, given what is added to each lookup.
    :return: what was added in each pass.
    """
    d = [start(i, width, init, generator, padding_idx) for i in ids]
    seen = []
    if clean:
        loss_at([torch.zeros_like(x) for x in d]).backward()
    for _ in range(steps):
        d = [x.detach().requires_grad_() for x in d]
        seen.append([x.detach().clone() for x in d])
        (loss_at(d) / steps).backward()
        grads = [x.grad for x in d]
        d = [x.detach() for x in d]
        for x, g, i in zip(d, grads, ids, strict=True):
            for example in range(len(i)):
                real = torch.tensor([[float(t != padding_idx)] for t in i[example].tolist()], dtype=x.dtype)
                x[example] += alpha * direction(g[example] * real, "l2")
                if epsilon > 0:
                    x[example] = shrink(x[example], epsilon, "l2")
    return seen


def loss_at(model, ids, labels):
    """The loss of the model, with something added to its embedded inputs."""
    return lambda d: cross_entropy(model.head(model.rnn(model.word_embeddings(ids) + d[0])[0].mean(1)), labels)


def attack_and_generator(model, seed=7, **arguments):
    attack = FreeLB(model, **arguments)
    attack.stream.generator = torch.Generator().manual_seed(seed)
    return attack, torch.Generator().manual_seed(seed)


def step(attack, model, loss=LOSS):
    model.zero_grad()
    attack.step(lambda: loss(model))
    return gradients(model)


def expected(model, generator, **arguments):
    model.zero_grad()
    arguments = {"epsilon": 0.0, "alpha": 0.1, "steps": 3, "init": 0.05, **arguments}
    reference([IDS], loss_at(model, IDS, LABELS), generator, 8, **arguments)
    return gradients(model)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 5.0])  # no ball, one that is left and one that is not
@pytest.mark.parametrize("clean", [False, True])
def test_a_step(epsilon, steps, clean, alpha=0.2, init=1.0):
    model = classifier()
    before = snapshot(model)
    arguments = {"epsilon": epsilon, "alpha": alpha, "steps": steps, "init": init, "clean": clean}
    attack, generator = attack_and_generator(model, **arguments)
    found = [step(attack, model) for _ in range(2)]
    attack.close()
    assert_untouched(model, before)
    for each in found:
        assert_same(each, expected(model, generator, **arguments))
    assert differ(*found) > 1e-4  # each step draws its own noise


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_with_a_fraction_the_clean_pass_is_on_all_and_the_others_on_the_attacked_rows(fraction):
    model = classifier()
    sizes = {"epsilon": 0.15, "alpha": 0.1, "init": 0.5, "steps": 3}
    rows = FreeLB(classifier(), clean=True, fraction=fraction).choose(len(IDS))
    attack, generator = attack_and_generator(model, **sizes, clean=True, fraction=fraction)
    model.zero_grad()
    attack.step(lambda part: loss_on(part["ids"], part["labels"])(model), {"ids": IDS, "labels": LABELS})
    found = gradients(model)
    model.zero_grad()
    LOSS(model).backward()
    reference([IDS[rows]], loss_at(model, IDS[rows], LABELS[rows]), generator, 8, **sizes)
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
    attack, generator = attack_and_generator(model, **arguments)
    found = step(attack, model, lambda m: m(left, right))
    model.zero_grad()
    attack.close()

    def at(d):
        return model.compare(model.emb(left) + d[0], model.emb(right) + d[1])

    padding = -1 if padding_idx is None else padding_idx
    reference([left, right], at, generator, 6, padding_idx=padding, **arguments)
    assert_same(found, gradients(model))


def added(model, attack, closure):
    """What a step adds to the lookups, pass by pass."""
    seen = []

    def look(module, args, output):
        seen.append((output - words(model).weight[IDS]).detach())

    with words(model).register_forward_hook(look):  # after the attack's own
        attack.step(closure)
    return seen


def test_perturbations_and_their_report():
    model = classifier()
    attack, generator = attack_and_generator(model, epsilon=0.15, steps=3)
    found = added(model, attack, lambda: LOSS(model))
    wanted = reference([IDS], loss_at(model, IDS, LABELS), generator, 8, epsilon=0.15, alpha=0.1, steps=3, init=0.05)
    torch.testing.assert_close(torch.stack(found), torch.stack([d for (d,) in wanted]))
    assert attack.perturbation_norm.item() == pytest.approx(found[-1].norm().item())
    assert found[-1].flatten(1).norm(dim=1).max() == pytest.approx(0.15)
    assert attack.skipped.item() == 0
