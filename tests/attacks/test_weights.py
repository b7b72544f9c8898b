"""What AWP and SAM, which move weights, share."""

from __future__ import annotations

import copy

import pytest
import torch
from references import batch
from support import snapshot
from torch import nn

from fastnlp_adv import AWP, SAM


class Slope(nn.Module):
    """A loss whose gradient is known: the slope."""

    def __init__(self, dtype):
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3000, generator=noise, dtype=torch.float64).to(dtype))
        self.slope = torch.randn(3000, generator=noise, dtype=torch.float64).to(dtype)

    def forward(self):
        return (self.weight.double() * self.slope.double()).sum()


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


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


@HALF
@pytest.mark.parametrize("method", ["AWP", "SAM"])
def test_moves_rounded_at_random_are_on_average_those_of_the_definition(dtype, method, share=0.0005):
    """Rounded to the nearest, half of them would be none."""
    model = Slope(dtype)
    w, g = model.weight.detach().double(), model.slope.double()
    length = share * w.norm()
    expected = length * g / g.norm()
    attack = AWP(gamma=share) if method == "AWP" else SAM(rho=float(length))
    attack.rounding = "stochastic"
    with attack.attach(model):
        found = moves(attack, model, steps=200)
    rise = torch.stack([move @ g for move in found]) / (expected @ g)
    assert float(rise.mean()) == pytest.approx(1, abs=0.02)
    assert float(torch.cosine_similarity(torch.stack(found).mean(0), expected, dim=0)) > 0.95
    nearest = (w + expected).to(dtype).double() - w
    assert dtype is torch.float16 or float(nearest @ g / (expected @ g)) < 0.95


@HALF
def test_moves_rounded_at_random_are_drawn_from_the_stream_of_the_method(dtype):
    model = Slope(dtype)
    with AWP(model, gamma=0.001, rounding="stochastic") as awp:
        first = moves(awp, model)
        state = copy.deepcopy(awp.state_dict())
        before = torch.get_rng_state()
        second = moves(awp, model)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(first[0], second[0])
        awp.load_state_dict(state)
        assert torch.equal(moves(awp, model)[0], second[0])


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


def half_model():
    """In bfloat16, with a twin in double precision at the same weights."""
    model = Halved().bfloat16()
    twin = Halved().double()
    with torch.no_grad():
        for own, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
            other.copy_(own)
    return model, twin


@pytest.mark.parametrize("method", ["AWP", "AWP-replace", "SAM"])
def test_weights_in_half_precision_move_as_far_as_the_definition_says(method):
    """The pass there runs in single precision, and its gradients come to the weights in half precision."""
    model, twin = half_model()
    ids, labels = batch(4, 7)
    before, passes = snapshot(model), []

    def closure():
        passes.append({name: (p.dtype, p.detach().double()) for name, p in model.named_parameters()})
        loss = nn.functional.cross_entropy(model(ids).float(), labels)
        passes[-1]["statistics"] = model.batch_norm.running_mean.clone()
        return loss

    # the direction is the half-precision model's
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    ours = copy.deepcopy(model)
    nn.functional.cross_entropy(ours(ids).float(), labels).backward()
    grads = {name: p.grad.double() for name, p in ours.named_parameters() if p.grad is not None}
    total = torch.stack([g.norm() for g in grads.values()]).norm()
    attack = SAM(rho=0.01) if method == "SAM" else AWP(gamma=0.0005, replace=method == "AWP-replace")
    expected = {
        name: 0.01 * g / total if method == "SAM" else 0.0005 * own[name].double().norm() * g / g.norm()
        for name, g in grads.items()
        if method == "SAM" or "weight" in name
    }
    with attack.attach(model):
        attack.step(closure)
    first, second = passes
    found = {name: second[name][1] - first[name][1] for name in own}
    for name, move in expected.items():
        assert second[name][0] is torch.float32
        assert float((found[name] - move).norm()) < 1e-2 * float(move.norm()) + 1e-9
    assert all(not found[name].any() for name in own if name not in expected)
    norm = torch.stack([move.norm() for move in expected.values()]).norm()
    assert float(attack.perturbation_norm) == pytest.approx(float(norm), rel=1e-3)

    # the gradient is the one there
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p += expected.get(name, 0)
        twin.batch_norm.running_mean.copy_(
            first["statistics"] if method == "AWP" else before[0]["batch_norm.running_mean"]
        )
    nn.functional.cross_entropy(twin(ids), labels).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            there = twin.get_parameter(name).grad + (grads[name] if method == "AWP" else 0)
            assert p.grad.dtype is p.dtype is torch.bfloat16
            assert float((p.grad.double() - there).norm()) < 1e-2 * float(there.norm()) + 1e-6
    assert torch.allclose(model.batch_norm.running_mean.double(), twin.batch_norm.running_mean, atol=1e-2)
    assert not torch.equal(model.batch_norm.running_mean, before[0]["batch_norm.running_mean"])
    assert all(x.dtype in (torch.bfloat16, torch.long) for x in model.state_dict().values())
    assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
    assert all(own is kept for own, kept in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))
