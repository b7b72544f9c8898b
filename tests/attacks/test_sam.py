"""SAM and ASAM against their definitions, written out on a copy of the model with loops over all coordinates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from references import (
    IDS,
    LABELS,
    LOSS,
    assert_same,
    classifier,
    differ,
    each_model,
    gradients,
    on_moved_weights,
)
from support import Classifier, assert_untouched, build, snapshot
from torch import nn

from fastnlp_adv import SAM, SAMCallback

each_kind = pytest.mark.parametrize("adaptive", [False, True])


def factors(name, p, adaptive):
    """The diagonal of ``T_w``, by Python's numbers."""
    return [abs(w) + 0.01 if adaptive and "weight" in name else 1.0 for w in p.flatten().tolist()]


def moves(params, grads, rho, adaptive, matches=lambda name: True):
    """By how much each parameter moves, by name; nothing where no gradient comes."""
    own = {name: p for name, p in params.items() if matches(name) and grads[name] is not None}
    scaled = {
        name: [t * g for t, g in zip(factors(name, p, adaptive), grads[name].flatten().tolist(), strict=True)]
        for name, p in own.items()
    }
    length = math.hypot(*(x for each in scaled.values() for x in each))
    by = {}
    for name, p in own.items():
        there = [rho * t * x / length for t, x in zip(factors(name, p, adaptive), scaled[name], strict=True)]
        by[name] = torch.tensor(there, dtype=p.dtype).view_as(p)
    return by


def reference(model, loss_of, rho=0.3, adaptive=False, **more):
    """The gradients of a step, from the definition."""
    return on_moved_weights(model, loss_of, lambda *both: moves(*both, rho, adaptive, **more))[1]


def after(model, loss_of, rho=0.3, **arguments):
    model.zero_grad()
    with SAM(model, rho, **arguments) as sam:
        sam.step(lambda: loss_of(model))
    return gradients(model)


@each_model
@each_kind
def test_gradients_are_those_of_the_definition(make, loss_of, adaptive):
    model = make()
    before = snapshot(model)
    found = after(model, loss_of, adaptive=adaptive)
    assert_same(found, reference(model, loss_of, adaptive=adaptive))
    assert differ(found, reference(model, loss_of, rho=0.0)) > 1e-3
    assert differ(found, reference(model, loss_of, adaptive=not adaptive)) > 1e-3
    assert_untouched(model, before)


@each_model
@each_kind
@pytest.mark.parametrize("params", ["embeddings", "*bias*"])
def test_params_choose_what_moves_and_is_in_the_norm(make, loss_of, params, adaptive):
    """What does not move is trained at the others' moved place."""
    model = make()
    found = after(model, loss_of, params=params, adaptive=adaptive)
    assert_same(found, reference(model, loss_of, adaptive=adaptive, matches=lambda name: params.strip("*") in name))
    assert differ(found, reference(model, loss_of, adaptive=adaptive)) > 1e-3


@each_kind
def test_a_part_of_the_batch_gives_the_direction_and_all_of_it_is_trained(adaptive):
    def of_rows(model, rows):
        sizes.append(len(rows))
        return nn.functional.cross_entropy(model(IDS[rows]), LABELS[rows])

    model, sizes = classifier(), []
    torch.manual_seed(5)
    rows = SAM(copy.deepcopy(model), fraction=0.5).choose(4)
    later = iter([rows, torch.arange(4)])
    expected = reference(model, lambda model: of_rows(model, next(later)), adaptive=adaptive)
    torch.manual_seed(5)
    with SAM(model, 0.3, fraction=0.5, adaptive=adaptive) as sam:
        sam.step(lambda batch: of_rows(model, batch["rows"]), {"rows": torch.arange(4)})
    assert_same(gradients(model), expected)
    assert sizes == [2, 4] * 2
    assert differ(expected, reference(model, LOSS, adaptive=adaptive)) > 1e-3


@each_kind
def test_frozen_tied_and_unused_parameters(adaptive):
    """What is frozen or takes no part stays; a tied weight moves once."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.out = nn.Embedding(50, 6), nn.Linear(6, 50)
            self.out.weight = self.words.weight
            self.idle, self.still = nn.Parameter(torch.ones(2)), nn.Linear(6, 6)
            self.still.requires_grad_(False)
            self.double()

        def forward(self, ids):
            return self.out(torch.tanh(self.still(self.words(ids))).mean(1))

    model = Tied()
    before = snapshot(model)
    found = after(model, LOSS, adaptive=adaptive)
    assert_same(found, reference(model, LOSS, adaptive=adaptive))
    assert found["idle"] is None
    assert_untouched(model, before)


def step_in_single_precision(first, **arguments):
    """The model after a step, whose first pass has another loss, and the attack."""
    model, losses = Classifier(dropout=0.0), [lambda model: LOSS(model), first]
    with SAM(model, 0.3, **arguments) as sam:
        sam.step(lambda: losses.pop()(model))
    return model, sam


@each_kind
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_gradients_of_any_size(adaptive, size):
    """Their squares would not be there in single precision."""
    model, sam = step_in_single_precision(lambda model: LOSS(model) * size, adaptive=adaptive)
    plain = Classifier(dropout=0.0)
    LOSS(plain).backward()
    by = moves(dict(plain.named_parameters()), gradients(plain), 0.3, adaptive)
    total = math.hypot(*(x for each in by.values() for x in each.flatten().tolist()))
    assert adaptive or total == pytest.approx(0.3)
    assert sam.perturbation_norm.item() == pytest.approx(total, rel=1e-3)
    assert sam.skipped == 0
    assert_same(gradients(model), reference(plain, LOSS, adaptive=adaptive), rtol=1e-4)


@each_kind
@pytest.mark.parametrize("factor", [0.0, math.inf, math.nan])
def test_without_a_direction_the_step_is_a_plain_one(adaptive, factor):
    """One coordinate is enough: it would take part in the norm of all."""

    def first(model):
        return LOSS(model) * 0.0 if factor == 0 else LOSS(model) + factor * model.head.bias[0]

    model, sam = step_in_single_precision(first, adaptive=adaptive)
    plain = Classifier(dropout=0.0)
    LOSS(plain).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert sam.skipped == 1
    assert sam.perturbation_norm == 0


def test_what_the_first_line_says():
    assert SAM(Classifier()).describe().endswith("and 4 more: rho 0.05, shared by all")
    assert (
        SAM(Classifier(), 0.5, adaptive=True).describe().endswith("rho 0.5, shared by all, in units of each parameter")
    )


def test_a_model_without_trainable_parameters_is_refused_when_the_trainer_is_built():
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"to have a trainable parameter, but got 7 .* Call `requires_grad_\(\)`"):
        build(model, [SAMCallback()], optimizers=optimizer)


def test_a_loss_that_no_parameter_takes_part_in_is_refused():
    model, x = Classifier(), torch.ones(2, requires_grad=True)
    with (
        SAM(model) as sam,
        pytest.raises(RuntimeError, match="Expected the first pass to compute a gradient for a para"),
    ):
        sam.step(lambda: x.sum())
