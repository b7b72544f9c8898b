"""The geometry of perturbations, against loops over its definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastnlp_adv.functional import ascend, group_norm, project, random_in_ball, steepest_direction

NORM = pytest.mark.parametrize("norm", ["l2", "linf"])
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def size(values, norm):
    """The norm of a list of numbers, in Python's doubles."""
    return math.hypot(*values) if norm == "l2" else max(map(abs, values))


def groups(x, dims):
    """The index of every group: each fixes the dimensions that are not in ``dims`` and spans the others."""
    dims = {d % x.dim() for d in dims}
    ranges = [[slice(None)] if d in dims else range(x.shape[d]) for d in range(x.dim())]
    return [tuple(index) for index in itertools.product(*ranges)]


def numbers(x, index):
    return x[index].double().flatten().tolist()


@st.composite
def tensors(draw, dtypes=FLOATS):
    """A tensor of 1 to 4 dimensions, some of its dimensions as those of a group, and a norm."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dims = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))), dtype=torch.float64)
    scale = draw(st.sampled_from([1e-3, 1.0, 50.0]))
    return (x * scale).to(draw(st.sampled_from(dtypes))), tuple(dims), draw(st.sampled_from(["l2", "linf"]))


def rtol(x):
    """What rounding allows: results come in the tensor's precision, half precision is computed in single."""
    return 1e-12 if x.dtype == torch.float64 else 1e-5


@given(tensors())
def test_group_norm_is_the_norm_of_every_group(case):
    x, dims, norm = case
    found = group_norm(x, dims=dims, norm=norm)
    assert found.shape == tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    for index in groups(x, dims):
        assert found[index].item() == pytest.approx(size(numbers(x, index), norm), rel=rtol(x))


@given(tensors())
def test_steepest_direction_follows_its_formula(case):
    grad, dims, norm = case
    found = steepest_direction(grad, dims=dims, norm=norm)
    for index in groups(grad, dims):
        g = numbers(grad, index)
        wanted = [v / size(g, "l2") for v in g] if norm == "l2" else [math.copysign(1.0, v) if v else 0.0 for v in g]
        assert numbers(found, index) == pytest.approx(wanted, rel=rtol(grad), abs=rtol(grad))


@NORM
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_a_group_without_a_finite_nonzero_gradient_has_no_direction(bad, dtype, norm):
    grad = torch.tensor([[bad, bad if bad == 0 else 1.0], [3.0, -4.0]], dtype=dtype)
    found = steepest_direction(grad, dims=(1,), norm=norm)
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1].tolist() == pytest.approx([0.6, -0.8] if norm == "l2" else [1.0, -1.0], rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, 6e-8),
        (torch.float16, 6e4),
        (torch.bfloat16, 1e-38),
        (torch.bfloat16, 3e38),
        (torch.float32, 1e-23),  # its square is no single-precision number, and neither are those that follow
        (torch.float32, 1e-38),
        (torch.float32, 3e38),
        (torch.float64, 1e-300),
        (torch.float64, 1e300),
    ],
)
def test_tiny_and_huge_gradients_keep_their_direction(dtype, value):
    grad = torch.full((1, 1000), value, dtype=dtype)
    grad[0, ::2] *= -1
    found = steepest_direction(grad, dims=(1,), norm="l2")
    assert size(found[0].tolist(), "l2") == pytest.approx(1.0, rel=1e-3)
    assert torch.equal(found.sign(), grad.sign())
    assert steepest_direction(grad, dims=(1,), norm="linf").tolist() == grad.sign().tolist()


@given(tensors(), st.sampled_from([0.0, 1e-3, 0.5, 3.0]))
def test_projection_leaves_what_is_inside_and_scales_or_clips_what_is_not(case, epsilon):
    x, dims, norm = case
    found = project(x, epsilon, dims=dims, norm=norm)
    for index in groups(x, dims):
        v = numbers(x, index)
        if norm == "linf":
            wanted = [min(max(a, -epsilon), epsilon) for a in v]
        else:
            wanted = v if size(v, "l2") <= epsilon else [a * epsilon / size(v, "l2") for a in v]
        # a clipped half-precision number is the nearest one to epsilon
        tolerance = rtol(x) if norm == "l2" else torch.finfo(x.dtype).eps
        assert numbers(found, index) == pytest.approx(wanted, rel=tolerance, abs=1e-12)


@given(tensors(dtypes=(torch.float64,)), st.sampled_from([0.0, 0.3, 2.0]))
def test_ascend_adds_the_step(case, step):
    grad, dims, norm = case
    x = torch.arange(grad.numel(), dtype=grad.dtype).view(grad.shape)
    wanted = x + step * steepest_direction(grad, dims=dims, norm=norm)
    assert torch.equal(ascend(x, grad, step, dims=dims, norm=norm), wanted)


@given(tensors(), st.sampled_from([0.0, 1e-3, 0.5, 3.0]), st.integers(0, 99))
def test_a_random_start_is_inside_the_ball_and_the_generator_decides_it(case, epsilon, seed):
    like, dims, norm = case
    draws = [
        random_in_ball(like, epsilon, dims=dims, norm=norm, generator=torch.Generator().manual_seed(seed))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert draws[0].shape == like.shape
    for index in groups(like, dims):
        assert size(numbers(draws[0], index), norm) <= epsilon * (1 + torch.finfo(like.dtype).eps)


def test_random_starts_spread_over_the_ball():
    """Lengths are uniform for l2, coordinates for linf; no direction is preferred. 4000 draws, 4 standard errors."""
    torch.manual_seed(0)
    n, like = 4000, torch.zeros(4000, 3, dtype=torch.float64)
    error = 4 / math.sqrt(12 * n)
    ball = random_in_ball(like, 1.0, dims=(1,), norm="l2")
    lengths = torch.tensor([size(row, "l2") for row in ball.tolist()])
    assert abs(lengths.mean() - 0.5) < error
    for q in (0.1, 0.5, 0.9):
        assert ((lengths < q).double().mean() - q).abs() < 4 * math.sqrt(q * (1 - q) / n)
    assert ball.mean(0).abs().max() < error * 2
    cube = random_in_ball(like, 1.0, dims=(1,), norm="linf")
    assert all(abs((cube < q).double().mean() - (q + 1) / 2) < error * 2 for q in (-0.8, 0.0, 0.8))


@NORM
def test_a_random_start_spends_its_length_on_the_free_elements(norm):
    """What is not free stays 0 and does not shorten the rest."""
    torch.manual_seed(0)
    like, free = torch.zeros(3000, 40, 2, dtype=torch.float64), torch.zeros(3000, 40, 1, dtype=torch.bool)
    free[:, 7] = free[:, 9] = True
    x = random_in_ball(like, 1.0, dims=(1, 2), norm=norm, free=free)
    assert x[~free.expand_as(x)].eq(0).all()
    lengths = torch.tensor([size(group, norm) for group in x.flatten(1).tolist()])
    expected = 0.5 if norm == "l2" else 4 / 5  # the largest of four numbers uniform in [0, 1]
    assert lengths.mean().item() == pytest.approx(expected, abs=0.02)
