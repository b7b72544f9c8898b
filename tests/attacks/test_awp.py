"""AWP against its definition, written out on a copy of the model: a pass at `w`, one at `w + gamma |w| g / |g|`."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from references import (
    IDS,
    LABELS,
    LOSS,
    add,
    assert_same,
    classifier,
    differ,
    direction,
    each_model,
    gradients,
    on_moved_weights,
)
from support import assert_untouched, snapshot
from torch import nn

from fastnlp_adv import AWP


def reference(
    model,
    loss_of,
    matches=lambda name: "weight" in name,
    *,
    gamma=0.1,
    adv_weight=1.0,
    replace=False,
    coordinate_bound=math.inf,
):
    """The gradients of a step, from the definition."""

    def bounded(w, v):
        most = coordinate_bound * abs(w) if coordinate_bound < math.inf else math.inf  # not inf * 0
        return math.copysign(min(abs(v), most), v)

    def moves(params, grads):
        found = {}
        for name, p in params.items():
            if matches(name) and grads[name] is not None:
                values = p.flatten().tolist()
                v = gamma * math.hypot(*values) * direction(grads[name], "l2")
                move = map(bounded, values, v.flatten().tolist())
                found[name] = torch.tensor([*move], dtype=p.dtype).view_as(p)
        return found

    clean, moved = on_moved_weights(model, loss_of, moves)
    return add(dict.fromkeys(clean) if replace else clean, moved, adv_weight)


def after(model, loss_of, **arguments):
    attack = AWP(model, **{"gamma": 0.1, **arguments})
    model.zero_grad()
    attack.step(lambda: loss_of(model))
    attack.close()
    return gradients(model)


@each_model
@pytest.mark.parametrize(
    "more", [{}, {"replace": True}, {"adv_weight": 0.3}, {"coordinate_bound": 0.07}, {"coordinate_bound": 0.0}], ids=str
)
def test_gradients_are_those_of_the_definition(make, loss_of, more):
    model = make()
    before = snapshot(model)
    found = after(model, loss_of, **more)
    assert_same(found, reference(model, loss_of, **more))
    assert differ(found, reference(model, loss_of, gamma=0.0, **more)) > 1e-3 or more == {"coordinate_bound": 0.0}
    if "coordinate_bound" in more:
        assert differ(found, reference(model, loss_of)) > 1e-3
    assert_untouched(model, before)


@each_model
@pytest.mark.parametrize("params", ["embeddings", "*bias*", "*e*.weight"])
def test_params_choose_what_moves(make, loss_of, params):
    rules = {
        "embeddings": lambda name: "embeddings" in name,
        "*bias*": lambda name: "bias" in name,
        "*e*.weight": lambda name: "e" in name[: -len(".weight")] and name.endswith(".weight"),
    }
    model = make()
    assert_same(after(model, loss_of, params=params), reference(model, loss_of, rules[params]))


@pytest.mark.parametrize("mask", ["new", "same"])
@each_model
def test_dropout_masks(make, loss_of, mask):
    model = make()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    model.train()

    def seeded(model):
        if mask == "same":
            torch.manual_seed(5)
        return loss_of(model)

    torch.manual_seed(5)
    expected = reference(model, seeded)
    torch.manual_seed(5)
    assert_same(after(model, loss_of, dropout_mask=mask), expected)


@pytest.mark.parametrize("replace", [False, True])
def test_a_part_of_the_batch(replace):
    """Either the direction is the part's, or the loss at the moved weights."""
    arguments = {"gamma": 0.1, "adv_weight": 0.6, "replace": replace}
    model, sizes = classifier(), []

    def of_rows(model, rows):
        sizes.append(len(rows))
        return nn.functional.cross_entropy(model(IDS[rows]), LABELS[rows])

    torch.manual_seed(5)
    rows = AWP(copy.deepcopy(model), fraction=0.5).choose(4)
    later = iter([rows, torch.arange(4)] if replace else [torch.arange(4), rows])
    expected = reference(model, lambda model: of_rows(model, next(later)), **arguments)
    torch.manual_seed(5)
    with AWP(model, fraction=0.5, **arguments) as awp:
        awp.step(lambda batch: of_rows(model, batch["rows"]), {"rows": torch.arange(4)})
    assert_same(gradients(model), expected)
    assert sizes == ([2, 4] if replace else [4, 2]) * 2
    assert differ(expected, reference(model, LOSS, **arguments)) > 1e-3


class Odd(nn.Module):
    """A tied weight, a sparse gradient, one parameter that is not used and one that is 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 6, padding_idx=0)
        self.sparse = nn.Embedding(50, 6, sparse=True)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.zero = nn.Linear(6, 50, bias=False)
        nn.init.zeros_(self.zero.weight)
        self.idle = nn.Linear(6, 6)
        self.double()

    def forward(self, ids):
        hidden = self.second(torch.tanh(self.first(self.words(ids) + self.sparse(ids)))).mean(1)
        return nn.functional.linear(hidden, self.words.weight) + self.zero(hidden)


@pytest.mark.parametrize("replace", [False, True])
def test_tied_sparse_unused_and_zero_weights(replace):
    model = Odd()
    before = snapshot(model)
    assert_same(after(model, LOSS, replace=replace), reference(model, LOSS, replace=replace))
    assert_untouched(model, before)


def test_freezing_and_unfreezing_in_between():
    def moves(name):
        return "weight" in name and not name.startswith("rnn")

    model = classifier()
    with AWP(model, gamma=0.1) as attack:
        model.rnn.requires_grad_(False)
        model.zero_grad()
        attack.step(lambda: LOSS(model))
        assert_same(gradients(model), reference(model, LOSS, moves))
    model.word_embeddings.requires_grad_(False)
    attack.close()
    with AWP(model, gamma=0.1, replace=True) as attack:
        model.word_embeddings.requires_grad_()
        model.zero_grad()
        attack.step(lambda: LOSS(model))
        assert_same(gradients(model), reference(model, LOSS, moves, replace=True))


def test_norms_are_recorded():
    model = classifier()
    attack = AWP(model, gamma=0.1, params="head")
    attack.step(lambda: LOSS(model))
    loss = LOSS(model)
    grads = torch.autograd.grad(loss, list(model.head.parameters()))
    sizes = [0.1 * p.detach().norm() for p in model.head.parameters()]
    assert float(attack.grad_norm) == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm()))
    assert float(attack.perturbation_norm) == pytest.approx(float(torch.stack(sizes).norm()))
    assert int(attack.skipped) == 0


def test_weights_that_got_no_gradient_are_refused():
    model = Odd()
    with pytest.raises(RuntimeError, match="params='idle'"):
        AWP(model, params="idle").step(lambda: LOSS(model))
