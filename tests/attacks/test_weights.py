"""What AWP and SAM, which move weights, share."""

from __future__ import annotations

import copy

import pytest
import torch
from references import batch, classifier, loss_on
from support import assert_untouched, since_torch, snapshot
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastnlp_adv import AWP, SAM

LOSS = loss_on(*batch(4, 7))
BOTH = pytest.mark.parametrize(
    "build",
    [lambda model: AWP(model, params="*"), SAM, lambda model: SAM(model, adaptive=True)],
    ids=["AWP", "SAM", "ASAM"],
)


class InterruptedAt(TorchDispatchMode):
    """Ctrl-C behind the `number`th operation from the first pass on, until the second."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.passes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if self.passes == 1:
            self.number -= 1
            if self.number == 0:
                raise KeyboardInterrupt
        return found


@BOTH
def test_an_interruption_anywhere_between_the_passes_leaves_weights_to_the_bit(build):
    model = classifier()
    before = snapshot(model)
    number = interrupted = 0
    with build(model) as attack:
        while number == interrupted:
            number += 1
            mode = InterruptedAt(number)

            def closure(mode=mode):
                mode.passes += 1
                return LOSS(model)

            try:
                with mode:
                    attack.step(closure)
            except KeyboardInterrupt:
                interrupted += 1
            assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
            model.zero_grad()
    assert number > 50
    assert_untouched(model, before)


@since_torch(2, 2, "fake tensors take part in random numbers and in broadcasts")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "attack",
    [AWP(), AWP(replace=True, coordinate_bound=0.01), SAM(), SAM(adaptive=True)],
    ids=["AWP", "AWP-replace", "SAM", "ASAM"],
)
def test_a_step_waits_for_no_device(attack, dtype):
    """Tensors without values cannot be read on the host."""
    with FakeTensorMode():
        ids, labels = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, dtype=torch.long)
        model = nn.Sequential(
            nn.Embedding(50, 8, dtype=dtype), nn.Flatten(), nn.Linear(56, 3, dtype=dtype), nn.LogSoftmax(-1)
        )
        attack.forget().attach(model)
        for _ in range(2):
            attack.step(lambda: nn.functional.nll_loss(model(ids).float(), labels))
        assert attack.skipped.shape == attack.grad_norm.shape == attack.perturbation_norm.shape == ()
        attack.forget()


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
        assert float(attack.perturbation_norm) == pytest.approx(float(found[-1].norm()), rel=1e-5)
    return found[1::2]


@HALF
@pytest.mark.parametrize("share", [0.0005, 0.002])
@pytest.mark.parametrize("method", ["AWP", "SAM"])
def test_moves_in_half_precision_are_on_average_those_of_the_definition(dtype, share, method):
    """Rounded to the nearest, half of them would be none."""
    model = Slope(dtype)
    w, g = model.weight.detach().double(), model.slope.double()
    length = share * w.norm()
    expected = length * g / g.norm()
    with AWP(model, gamma=share) if method == "AWP" else SAM(model, rho=float(length)) as attack:
        found = moves(attack, model, steps=200)
    rise = torch.stack([move @ g for move in found]) / (expected @ g)
    assert float(rise.mean()) == pytest.approx(1, abs=0.02)
    assert float(torch.cosine_similarity(torch.stack(found).mean(0), expected, dim=0)) > 0.95
    nearest = (w + expected).to(dtype).double() - w
    assert dtype is torch.float16 or float(nearest @ g / (expected @ g)) < 0.95


@HALF
def test_moves_in_half_precision_are_drawn_from_the_stream_of_the_method(dtype):
    model = Slope(dtype)
    with AWP(model, gamma=0.001) as awp:
        first = moves(awp, model)
        state = copy.deepcopy(awp.state_dict())
        before = torch.get_rng_state()
        second = moves(awp, model)
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(first[0], second[0])
        awp.load_state_dict(state)
        assert torch.equal(moves(awp, model)[0], second[0])


@HALF
@BOTH
def test_a_half_precision_gradient_without_a_direction_moves_nothing(dtype, build):
    model = Slope(dtype)
    for value in (0.0, float("inf"), float("nan")):
        model.slope.fill_(value)
        with build(model) as attack:
            assert not moves(attack, model)[0].any()
            assert attack.skipped == 1
