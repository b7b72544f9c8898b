"""
AWP and SAM against their definitions, written out on a copy of the model: AWP has a pass at `w` and one at
`w + gamma |w| g / |g|`, SAM one where all weights together have moved by `rho`.
"""

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
    bert,
    bert_loss,
    classifier,
    differ,
    direction,
    each_model,
    gradients,
    length,
    on_moved_weights,
)
from support import Classifier, assert_untouched, snapshot
from torch import nn

from fastnlp_adv import AWP, SAM


def awp_moves(params, grads, *, gamma=0.1, coordinate_bound=None):
    """By how much each parameter moves, by name."""
    found = {name: gamma * length(p) * direction(grads[name], "l2") for name, p in params.items()}
    if coordinate_bound is None:
        return found
    return {name: v.sign() * torch.minimum(v.abs(), coordinate_bound * params[name].abs()) for name, v in found.items()}


def sam_moves(params, grads, *, rho=0.3, adaptive=False):
    """By how much each parameter moves, by name; ``T_w`` is a diagonal."""
    t = {name: p.abs() + 0.01 if adaptive and "weight" in name else 1.0 for name, p in params.items()}
    size = length(*(t[name] * grads[name] for name in params))
    return {name: rho * t[name] ** 2 * grads[name] / size for name in params}


MOVES = {AWP: awp_moves, SAM: sam_moves}
#: a method, and arguments of it and of its definition
KINDS = {
    "awp": (AWP, {"gamma": 0.1}),
    "awp-replace": (AWP, {"gamma": 0.1, "replace": True}),
    "awp-adv_weight": (AWP, {"gamma": 0.1, "adv_weight": 0.3}),
    "awp-bound": (AWP, {"gamma": 0.1, "coordinate_bound": 0.07}),
    "awp-bound-0": (AWP, {"gamma": 0.1, "coordinate_bound": 0.0}),
    "sam": (SAM, {"rho": 0.3}),
    "sam-adaptive": (SAM, {"rho": 0.3, "adaptive": True}),
}
FOUR = ("awp", "awp-replace", "sam", "sam-adaptive")
each_kind = pytest.mark.parametrize(("method", "arguments"), KINDS.values(), ids=KINDS)
each_of_four = pytest.mark.parametrize(("method", "arguments"), [KINDS[kind] for kind in FOUR], ids=FOUR)
both_sams = pytest.mark.parametrize("adaptive", [False, True])


def reference(model, loss_of, method, arguments, matches=None):
    """The gradients of a step, and by how much the weights moved."""
    arguments, moved = {"replace": method is SAM, "adv_weight": 1.0, **arguments}, {}
    replace, adv_weight = arguments.pop("replace"), arguments.pop("adv_weight")
    matches = matches or (lambda name: method is SAM or "weight" in name)

    def moves(params, grads):
        params = {name: p.detach() for name, p in params.items() if matches(name) and grads[name] is not None}
        moved.update(MOVES[method](params, grads, **arguments))
        return moved

    clean, there = on_moved_weights(model, loss_of, moves)
    return add(dict.fromkeys(clean) if replace else clean, there, adv_weight), moved


def after(model, loss_of, method, arguments):
    """The gradients of a step, and the method."""
    model.zero_grad()
    with method(model, **arguments) as attack:
        attack.step(lambda: loss_of(model))
    return gradients(model), attack


@each_model
@each_kind
def test_gradients_are_those_of_the_definition(make, loss_of, method, arguments):
    model = make()
    before = snapshot(model)
    found, attack = after(model, loss_of, method, arguments)
    expected, moved = reference(model, loss_of, method, arguments)
    assert_same(found, expected)
    assert_untouched(model, before)
    assert float(attack.perturbation_norm) == pytest.approx(length(*moved.values()))
    assert attack.skipped == 0
    size, *more = arguments
    without = {size: arguments[size] if more else 0.0}
    assert differ(found, reference(model, loss_of, method, without)[0]) > 1e-3


RULES = {
    "embeddings": lambda name: "embeddings" in name,
    "*bias*": lambda name: "bias" in name,
    "*e*.weight": lambda name: "e" in name[: -len(".weight")] and name.endswith(".weight"),
}


@each_of_four
@pytest.mark.parametrize("params", RULES)
def test_params_choose_what_moves_and_is_in_the_norm(method, arguments, params):
    """What does not move is trained at the others' moved place."""
    model = bert()
    found, attack = after(model, bert_loss, method, {**arguments, "params": params})
    expected, moved = reference(model, bert_loss, method, arguments, RULES[params])
    assert_same(found, expected)
    if "adaptive" not in arguments:  # whose norm is that of the scaled gradient
        model.zero_grad()
        bert_loss(model).backward()
        assert float(attack.grad_norm) == pytest.approx(length(*(gradients(model)[name] for name in moved)))


@pytest.mark.parametrize("mask", ["new", "same"])
def test_dropout_masks(mask):
    model = classifier(dropout=0.2)

    def seeded(model):
        if mask == "same":
            torch.manual_seed(5)
        return LOSS(model)

    torch.manual_seed(5)
    expected, _ = reference(model, seeded, *KINDS["awp"])
    torch.manual_seed(5)
    assert_same(after(model, LOSS, AWP, {"gamma": 0.1, "dropout_mask": mask})[0], expected)


@each_of_four
def test_a_part_of_the_batch(method, arguments):
    """Either the direction is the part's, or the loss at the moved weights."""
    model, sizes = classifier(), []

    def of_rows(model, rows):
        sizes.append(len(rows))
        return nn.functional.cross_entropy(model(IDS[rows]), LABELS[rows])

    torch.manual_seed(5)
    part, whole = method(copy.deepcopy(model), fraction=0.5).choose(4), torch.arange(4)
    first = method is SAM or "replace" in arguments
    later = iter([part, whole] if first else [whole, part])
    expected, _ = reference(model, lambda model: of_rows(model, next(later)), method, arguments)
    torch.manual_seed(5)
    with method(model, fraction=0.5, **arguments) as attack:
        attack.step(lambda batch: of_rows(model, batch["rows"]), {"rows": whole})
    assert_same(gradients(model), expected)
    assert sizes == ([2, 4] if first else [4, 2]) * 2
    assert differ(expected, reference(model, LOSS, method, arguments)[0]) > 1e-3


class Odd(nn.Module):
    """A tied weight, a sparse gradient, parameters that are frozen or not used, and one that is 0."""

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
        self.still = nn.Linear(6, 6).requires_grad_(False)
        self.idle = nn.Linear(6, 6)
        self.double()

    def forward(self, ids):
        hidden = self.second(torch.tanh(self.first(self.words(ids) + self.sparse(ids)))).mean(1)
        return nn.functional.linear(self.still(hidden), self.words.weight) + self.zero(hidden)


@each_of_four
def test_tied_sparse_frozen_unused_and_zero_weights(method, arguments):
    """What is frozen or takes no part stays; a tied weight moves once."""
    model = Odd()
    before = snapshot(model)
    found, _ = after(model, LOSS, method, arguments)
    assert_same(found, reference(model, LOSS, method, arguments)[0])
    assert found["idle.weight"] is None
    assert_untouched(model, before)


@each_of_four
def test_freezing_and_unfreezing_while_attached(method, arguments):
    model = classifier()
    model.word_embeddings.requires_grad_(False)
    with method(model, **arguments) as attack:
        model.word_embeddings.requires_grad_()
        model.rnn.requires_grad_(False)
        attack.step(lambda: LOSS(model))
    assert_same(gradients(model), reference(model, LOSS, method, arguments)[0])


def sam_in_single_precision(first, adaptive):
    """The model after a step, whose first pass has another loss, and the attack."""
    model, losses = Classifier(dropout=0.0), [LOSS, first]
    _, sam = after(model, lambda model: losses.pop()(model), SAM, {"rho": 0.3, "adaptive": adaptive})
    return model, sam


@both_sams
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_gradients_of_any_size(adaptive, size):
    """Their squares would not be there in single precision."""
    model, sam = sam_in_single_precision(lambda model: LOSS(model) * size, adaptive)
    expected, moved = reference(Classifier(dropout=0.0), LOSS, SAM, {"adaptive": adaptive})
    assert sam.perturbation_norm.item() == pytest.approx(length(*moved.values()), rel=1e-3)
    assert sam.skipped == 0
    assert_same(gradients(model), expected, rtol=1e-4)


@both_sams
@pytest.mark.parametrize("factor", [0.0, math.inf, math.nan])
def test_without_a_direction_the_step_is_a_plain_one(adaptive, factor):
    """One coordinate is enough: it would take part in the norm of all."""

    def first(model):
        return LOSS(model) * 0.0 if factor == 0 else LOSS(model) + factor * model.head.bias[0]

    model, sam = sam_in_single_precision(first, adaptive)
    plain = Classifier(dropout=0.0)
    LOSS(plain).backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert sam.skipped == 1
    assert sam.perturbation_norm == 0


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_parameter_without_a_direction_is_left_out_of_awp(bad):
    model, arguments = classifier(), {"gamma": 0.1, "replace": True}
    losses = [LOSS, lambda model: LOSS(model) + bad * model.head.weight[0, 0]]
    found, awp = after(model, lambda model: losses.pop()(model), AWP, arguments)
    others = [name for name, _ in model.named_parameters() if "weight" in name and name != "head.weight"]
    assert_same(found, reference(model, LOSS, AWP, arguments, others.__contains__)[0])
    assert awp.skipped == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [({}, "and 4 more: rho 0.05, shared by all"), ({"rho": 0.5, "adaptive": True}, "all, in units of each parameter")],
)
def test_what_the_first_line_says(arguments, line):
    assert SAM(Classifier(), **arguments).describe().endswith(line)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match=r"to have a trainable parameter, but got 7 .* Call `requires_grad_\(\)`"):
        SAM(Classifier().requires_grad_(False))


def test_weights_that_got_no_gradient_are_refused():
    model, x = Odd(), torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="params='idle'"):
        AWP(model, params="idle").step(lambda: LOSS(model))
    with pytest.raises(RuntimeError, match="Expected the first pass to compute a gradient for a para"):
        SAM(model).step(lambda: x.sum())


class Slope(nn.Module):
    """A loss whose gradient is known: the slope."""

    def __init__(self, dtype):
        super().__init__()
        weight, self.slope = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.weight = nn.Parameter(weight)

    def forward(self):
        return (self.weight.double() * self.slope.double()).sum()


def moves(attack, model, steps=1):
    """By how much the weight moves in each step, in double precision."""
    origin, found = model.weight.detach().clone(), []

    def closure():
        found.append(model.weight.detach().double() - origin.double())
        return model()

    for _ in range(steps):
        attack.step(closure)
        assert torch.equal(model.weight, origin)
        assert float(attack.perturbation_norm) == pytest.approx(float(found[-1].norm()), rel=1e-4)
    return found[1::2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [AWP, SAM])
def test_moves_rounded_at_random_are_on_average_those_of_the_definition(dtype, method, share=0.0005):
    """Rounded to the nearest, half of them would be none."""
    model = Slope(dtype)
    g = model.slope.double()
    expected = share * model.weight.detach().double().norm() * g / g.norm()
    size = {"gamma": share} if method is AWP else {"rho": float(expected.norm())}
    with method(model, rounding="stochastic", **size) as attack:
        found = moves(attack, model, steps=200)
    rise = torch.stack([move @ g for move in found]) / (expected @ g)
    assert float(rise.mean()) == pytest.approx(1, abs=0.02)
    assert float(torch.cosine_similarity(torch.stack(found).mean(0), expected, dim=0)) > 0.95


def test_moves_rounded_at_random_are_drawn_from_the_stream_of_the_method():
    model = Slope(torch.bfloat16)
    with AWP(model, gamma=0.001, rounding="stochastic") as awp:
        (first,) = moves(awp, model)
        state, before = copy.deepcopy(awp.state_dict()), torch.get_rng_state()
        (second,) = moves(awp, model)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(first, second)
        awp.load_state_dict(state)
        assert torch.equal(*moves(awp, model), second)


class Halved(nn.Module):
    """What has its weights in half precision, in several places and ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.batch_norm = nn.BatchNorm1d(16)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.words.weight
        self.still = nn.Linear(16, 16).requires_grad_(False)

    def forward(self, ids):
        hidden = self.rnn(self.words(ids))[0]
        hidden = hidden + self.attention(hidden, hidden, hidden)[0]
        hidden = self.batch_norm(hidden.mean(1))
        return self.out(torch.tanh(self.still(self.norm(hidden))))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [(AWP, {"gamma": 0.0005}), (AWP, {"gamma": 0.0005, "replace": True}), (SAM, {"rho": 0.01})],
    ids=["awp", "awp-replace", "sam"],
)
def test_weights_in_half_precision_move_as_far_as_the_definition_says(method, arguments):
    """The pass there runs in single precision, and its gradients come to the weights in half precision."""
    model = Halved().bfloat16()
    twin = copy.deepcopy(model).double()
    before, passes = snapshot(model), []

    def loss_of(model):
        return nn.functional.cross_entropy(model(IDS).float(), LABELS)

    def closure():
        passes.append({name: (p.dtype, p.detach().double()) for name, p in model.named_parameters()})
        loss = loss_of(model)
        passes[-1]["statistics"] = model.batch_norm.running_mean.clone()
        return loss

    # the direction is the half-precision model's
    ours = copy.deepcopy(model)
    loss_of(ours).backward()
    grads = {name: p.grad.double() for name, p in ours.named_parameters() if p.grad is not None}
    own = {name: model.get_parameter(name).detach().double() for name in grads if method is SAM or "weight" in name}
    size, *_ = arguments
    expected = MOVES[method](own, grads, **{size: arguments[size]})
    with method(model, **arguments) as attack:
        attack.step(closure)
    first, second = passes
    found = {name: second[name][1] - first[name][1] for name, _ in model.named_parameters()}
    for name, move in expected.items():
        assert second[name][0] is torch.float32
        assert float((found[name] - move).norm()) < 1e-2 * float(move.norm()) + 1e-9
    assert all(not found[name].any() for name in found if name not in expected)
    assert float(attack.perturbation_norm) == pytest.approx(length(*expected.values()), rel=1e-3)

    # the gradient is the one there
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p += expected.get(name, 0)
        if not attack.replace:
            twin.batch_norm.running_mean.copy_(first["statistics"])
    nn.functional.cross_entropy(twin(IDS), LABELS).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            there = twin.get_parameter(name).grad + (0 if attack.replace else grads[name])
            assert p.grad.dtype is p.dtype is torch.bfloat16
            # in float32, about 1e-6 is left of a gradient that is 0
            assert float((p.grad.double() - there).norm()) < 1e-2 * float(there.norm()) + 1e-5
    assert torch.allclose(model.batch_norm.running_mean.double(), twin.batch_norm.running_mean, atol=1e-2)
    assert not torch.equal(model.batch_norm.running_mean, before[0]["batch_norm.running_mean"])
    assert all(x.dtype in (torch.bfloat16, torch.long) for x in model.state_dict().values())
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    assert all(own is kept for own, kept in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))
