"""SMART against its definition, on embedded inputs and on averages by hand."""

import copy
import math

import pytest
import torch
from references import assert_same, gradients
from smoothness import SEED, Gru, Passes, assert_oracle, batches, both, each_family, reference_training, step_of
from support import distance, train
from torch.nn.functional import cross_entropy

from fastnlp_adv import FGM
from fastnlp_adv.callbacks import SMARTCallback
from fastnlp_adv.regularizers import SMART

WIDE = {"epsilon": 0.3, "alpha": 0.2, "noise": 0.05}  # some coordinates end at the bound, some do not
PAPER = {"epsilon": 1e-5, "alpha": 1e-3, "noise": 1e-5}
BREGMAN = {**WIDE, "bregman_weight": 3.0, "bregman_beta": 0.8}


def reference(epsilon=1e-2, alpha=1e-2, noise=1e-3, steps=1, weight=1.0, of=both):
    """The definition, coordinate by coordinate."""

    def term(passes, generator):
        clean = passes()
        d = noise * passes.normal(generator)
        for _ in range(steps):
            g = passes.gradient(lambda q: of(clean.detach(), q), d)
            moved = []
            for each, slope in zip(d, g, strict=True):
                largest = max(abs(s) for s in slope.flatten().tolist())
                new = [
                    min(max(a + alpha * s / largest, -epsilon), epsilon)
                    for a, s in zip(each.flatten().tolist(), slope.flatten().tolist(), strict=True)
                ]
                moved.append(torch.tensor(new, dtype=d.dtype).view_as(each))
            d = torch.stack(moved)
        return clean, weight * of(clean, passes(d))

    return term


@each_family
@pytest.mark.parametrize("arguments", [WIDE, {**WIDE, "steps": 3, "weight": 0.5}, {}, {**PAPER, "weight": 1e10}])
def test_gradients_are_those_of_the_definition(family, arguments):
    """With the paper's epsilon too, weighted so that the term counts as much as the loss."""
    assert_oracle(lambda m: SMART(m, **arguments), reference(**arguments), family)


@each_family
@pytest.mark.parametrize("dropout_mask", ["new", "same"])
def test_with_dropout(family, dropout_mask):
    assert_oracle(lambda m: SMART(m, **WIDE, dropout_mask=dropout_mask), reference(**WIDE), family, dropout=0.2)


@each_family
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_trainer_averages_the_weights_as_a_loop_by_hand(family, accumulation):
    ours, theirs, without = family.make(), family.make(), family.make()
    average = copy.deepcopy(theirs)

    def after_step():
        with torch.no_grad():
            for a, p in zip(average.parameters(), theirs.parameters(), strict=True):
                a.copy_(0.8 * a + 0.2 * p)

    def term(passes, generator):
        old = family.logits(average, passes.batch).detach()
        clean, smooth = reference(**WIDE)(passes, generator)
        return clean, smooth + 3.0 * both(clean, old)

    train(ours, [SMARTCallback(**BREGMAN)], n_batches=6, accumulation_steps=accumulation)
    reference_training(family, theirs, term, accumulation, after_step=after_step)
    train(without, [SMARTCallback(**WIDE)], n_batches=6, accumulation_steps=accumulation)
    assert distance(ours, theirs) < 1e-8
    assert distance(ours, without) > 1e-5


def lagging(dropout=0.0, **arguments):
    """SMART on a model that its average lags behind, a copy of that model, and the average by hand."""
    ours = Gru.make(dropout)
    average = copy.deepcopy(ours)
    smart = SMART(ours, **BREGMAN, **arguments)
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(1.1)
        smart.after_step()
        for a, p in zip(average.parameters(), ours.parameters(), strict=True):
            a.copy_(0.8 * a + 0.2 * p)
    smart.stream.generator = torch.Generator().manual_seed(SEED)
    return smart, ours, copy.deepcopy(ours), average


@pytest.mark.parametrize("dropout_mask", ["new", "same"])
def test_the_average_sees_the_dropout_mask_of_its_turn(dropout_mask):
    """Its pass is the first of the step."""
    smart, ours, theirs, average = lagging(0.2, dropout_mask=dropout_mask)
    batch = batches()[0]
    torch.manual_seed(SEED)
    outputs = smart(step_of(Gru, ours), batch)
    outputs["loss"].backward()

    torch.manual_seed(SEED)
    passes = Passes(Gru, theirs, batch, dropout_mask)
    old = Gru.logits(average, batch).detach()
    clean, smooth = reference(**WIDE)(passes, torch.Generator().manual_seed(SEED))
    bregman = both(clean, old)
    (cross_entropy(clean, batch["labels"]) + smooth + 3.0 * bregman).backward()
    assert_same(gradients(ours), gradients(theirs), 1e-5)
    torch.testing.assert_close([outputs["smart"], outputs["bregman"]], [smooth.detach(), bregman.detach()])


def test_under_fgm_the_regularized_objective_is_attacked():
    smart, ours, theirs, average = lagging()
    batch = batches()[0]
    FGM(ours, 0.7, emb_name="head.weight").step(lambda: smart(step_of(Gru, ours), batch)["loss"])

    generator = torch.Generator().manual_seed(SEED)
    old = Gru.logits(average, batch).detach()  # in both passes: what the attack writes is put aside for it

    def objective():
        clean, smooth = reference(**WIDE)(Passes(Gru, theirs, batch), generator)
        (cross_entropy(clean, batch["labels"]) + smooth + 3.0 * both(clean, old)).backward()

    weight = theirs.head.weight
    objective()
    r = 0.7 * weight.grad / math.hypot(*weight.grad.flatten().tolist())
    with torch.no_grad():
        weight += r
    objective()
    assert_same(gradients(ours), gradients(theirs), 1e-5)
