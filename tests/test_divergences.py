"""Divergences against the definitions, written as loops over Python floats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fastnlp_adv.divergences import divergence

KINDS = ("categorical", "bernoulli", "mse")
INF, NAN = math.inf, math.nan

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).flatmap(
    lambda lead: st.integers(2, 5).map(lambda classes: (*lead, classes))
)
seeds = st.integers(0, 2**31)


def draw(shape, seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple((scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2))


# The definitions, one number at a time.


def softmax_by_hand(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kl_by_hand(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def both_directions(one_direction, p, q, symmetric):
    there, back = one_direction(p, q), one_direction(q, p)
    return {None: there, "sum": there + back, "mean": (there + back) / 2}[symmetric]


def position_by_hand(kind, p, q, symmetric):
    """The divergence at one position, from the logits of its last dimension."""
    if kind == "categorical":
        return both_directions(kl_by_hand, softmax_by_hand(p), softmax_by_hand(q), symmetric)
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if kind == "mse":
            total += both_directions(lambda x, y: (x - y) ** 2, a, b, symmetric)
        else:
            yes_a, yes_b = (1 / (1 + math.exp(-x)) for x in (a, b))
            total += both_directions(kl_by_hand, [yes_a, 1 - yes_a], [yes_b, 1 - yes_b], symmetric)
    return total


def by_hand(kind, p, q, reduction, mask, symmetric):
    examples, classes = p.shape[0], p.shape[-1]
    rows_p, rows_q = p.reshape(-1, classes).tolist(), q.reshape(-1, classes).tolist()
    kept = [True] * len(rows_p) if mask is None else mask.reshape(-1).tolist()
    total = sum(
        position_by_hand(kind, a, b, symmetric) for a, b, keep in zip(rows_p, rows_q, kept, strict=True) if keep
    )
    positions = sum(kept)
    count = {"sum": 1, "mean": positions * classes, "batchmean": examples if mask is None else positions}[reduction]
    return total / count if count else 0.0


@given(
    kind=st.sampled_from(KINDS),
    shape=shapes,
    seed=seeds,
    reduction=st.sampled_from(["batchmean", "sum", "mean"]),
    symmetric=st.sampled_from(["mean", "sum", None]),
    masked=st.sampled_from([None, torch.bool, torch.int64, torch.float32]),
)
def test_equals_the_definition(kind, shape, seed, reduction, symmetric, masked):
    p, q = draw(shape, seed)
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(seed + 1)) < 0.6
    mask = None if masked is None else mask.to(masked)
    found = divergence(p, q, kind=kind, reduction=reduction, mask=mask, symmetric=symmetric)
    assert found.shape == ()
    assert found.item() == pytest.approx(by_hand(kind, p, q, reduction, mask, symmetric), rel=1e-9, abs=1e-12)


@given(kind=st.sampled_from(KINDS), seed=seeds, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_computed_in_single(kind, seed, dtype):
    p, q = draw((4, 3), seed, dtype=dtype)
    found = divergence(p, q, kind=kind)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, divergence(p.float(), q.float(), kind=kind), rtol=0, atol=0)
    p.requires_grad_()
    divergence(p, q, kind=kind).backward()
    assert p.grad.dtype == dtype


@pytest.mark.parametrize("kind", ["bernoulli", "mse"])
def test_a_mask_of_single_elements(kind):
    """As slicing them out, for kinds without a distribution over the last dimension."""
    p, q = draw((3, 4), seed=6)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]])
    found = divergence(p, q, kind=kind, mask=mask, reduction="mean")
    kept = mask.bool()
    torch.testing.assert_close(found, divergence(p[kept], q[kept], kind=kind, reduction="mean"))


# Gradients.


@pytest.mark.parametrize(("symmetric", "masked"), [("mean", True), ("sum", False), (None, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind, symmetric, masked):
    p, q = (x.requires_grad_() for x in draw((3, 2, 4), seed=7))
    mask = torch.tensor([[1, 0], [0, 0], [1, 1]]) if masked else None
    assert gradcheck(lambda p, q: divergence(p, q, kind=kind, mask=mask, symmetric=symmetric), (p, q))


@pytest.mark.parametrize("garbage", [NAN, -INF])
@pytest.mark.parametrize("kind", [*KINDS, lambda p, q: (p - q).abs().sqrt()])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
def test_masked_positions_leak_neither_value_nor_gradient(kind, reduction, garbage):
    p, q = draw((3, 2, 4), seed=9)
    mask = torch.tensor([[1, 0], [0, 1], [1, 1]])
    clean = [x.clone().requires_grad_() for x in (p, q)]
    dirty = [x.clone() for x in (p, q)]
    dirty[0][mask == 0] = garbage
    dirty[1][0, 1] = garbage
    dirty = [x.requires_grad_() for x in dirty]
    results = [divergence(*pair, kind=kind, reduction=reduction, mask=mask) for pair in (clean, dirty)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    for result in results:
        result.backward()
    for a, b in zip(clean, dirty, strict=True):
        kept = mask.bool()
        torch.testing.assert_close(b.grad[kept], a.grad[kept], rtol=0, atol=0)
        assert (b.grad[~kept] == 0).all() if kind in KINDS else True


# Degenerate inputs.


@pytest.mark.parametrize("symmetric", ["mean", "sum", None])
def test_classes_that_are_ruled_out_in_both_add_nothing(symmetric):
    p, q = draw((3, 4), seed=10)
    wide = []
    for x in (p, q):
        wide.append(torch.cat([x, torch.full((3, 2), -INF, dtype=x.dtype)], dim=-1).requires_grad_())
    found = divergence(*wide, symmetric=symmetric)
    torch.testing.assert_close(found, divergence(p, q, symmetric=symmetric))
    found.backward()
    p.requires_grad_()
    divergence(p, q, symmetric=symmetric).backward()
    torch.testing.assert_close(wide[0].grad[:, :4], p.grad)
    assert (wide[0].grad[:, 4:] == 0).all()
    assert wide[1].grad.isfinite().all()


def test_what_only_one_of_both_rules_out_is_infinitely_far():
    p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -INF]])
    assert divergence(p, q, symmetric=None) == INF
    assert divergence(q, p, symmetric=None).item() == pytest.approx(math.log(2))
    assert divergence(p, q) == divergence(q, p) == INF


def test_where_every_class_is_ruled_out_there_is_nothing_to_compare():
    p, q = draw((3, 4), seed=10)
    p[1] = q[1] = -INF
    p.requires_grad_()
    found = divergence(p, q, reduction="sum")
    torch.testing.assert_close(found, divergence(p[[0, 2]], q[[0, 2]], reduction="sum"))
    found.backward()
    assert (p.grad[1] == 0).all() and p.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("symmetric", ["mean", None])
def test_huge_logits(kind, size, symmetric):
    p = torch.tensor([[size, -size, 0.0], [-size, 1.0, size]], requires_grad=True)
    same = divergence(p, p.detach().clone(), kind=kind, symmetric=symmetric)
    same.backward()
    assert same == 0
    assert p.grad.isfinite().all()
    apart = divergence(p, p.detach().flip(0), kind=kind, symmetric=symmetric)
    assert apart >= size / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_never_waits_for_the_device(kind, reduction, masked):
    # Tensors on "meta" have no values: whatever asks for one raises.
    p, q = torch.zeros(3, 2, 4, device="meta"), torch.zeros(3, 2, 4, device="meta")
    mask = torch.zeros(3, 2, dtype=torch.bool, device="meta") if masked else None
    assert divergence(p, q, kind=kind, reduction=reduction, mask=mask).shape == ()


# Callables.


def test_a_callable_is_reduced_like_the_others():
    p, q = draw((3, 2, 4), seed=12)
    mask = torch.tensor([[1, 0], [1, 1], [0, 0]])
    for reduction in ("batchmean", "sum", "mean"):
        expected = divergence(p, q, kind="mse", reduction=reduction, mask=mask)
        found = divergence(p, q, kind=lambda p, q: (p - q) ** 2, reduction=reduction, mask=mask)
        torch.testing.assert_close(found, expected)


# Errors.


@pytest.mark.parametrize("classes", [0, 1])
def test_one_class_has_no_distribution(classes):
    with pytest.raises(ValueError, match=rf"at least 2 classes .* shape \(5, {classes}\)\. Use 'bernoulli'"):
        divergence(torch.zeros(5, classes), torch.zeros(5, classes))
    with pytest.raises(ValueError, match=r"but got shape \(5,\)"):
        divergence(torch.zeros(5), torch.zeros(5), mask=torch.ones(5))


def test_predictions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"the same shape .* got \(3, 4\) and \(4, 4\)"):
        divergence(torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"got \(\) and \(\)"):
        divergence(torch.zeros(()), torch.zeros(()), kind="mse")
    with pytest.raises(ValueError, match=r"floating-point logits or values, but got torch\.int64"):
        divergence(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4))


@pytest.mark.parametrize(("name", "value"), [("kind", "kl"), ("reduction", "none"), ("symmetric", "both")])
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Expected `{name}` to be .*, but got '{value}'"):
        divergence(torch.zeros(3, 4), torch.zeros(3, 4), **{name: value})


@pytest.mark.parametrize(
    ("kind", "shape", "mask", "expected"),
    [
        ("categorical", (3, 4), (4,), r"\(3,\), but got \(4,\)"),
        ("categorical", (3, 4), (3, 4), r"\(3,\), but got \(3, 4\)"),
        ("categorical", (3, 4), (3, 1), r"\(3,\), but got \(3, 1\)"),
        ("categorical", (3, 2, 4), (3,), r"\(3, 2\), but got \(3,\)"),
        ("mse", (3, 2, 4), (3, 2, 1), r"\(3, 2\), but got \(3, 2, 1\)"),
        ("mse", (3,), (), r"\(3,\), but got \(\)"),
    ],
)
def test_masks_of_another_shape_are_refused(kind, shape, mask, expected):
    with pytest.raises(ValueError, match=f"Expected `mask` to have shape {expected}"):
        divergence(torch.zeros(shape), torch.zeros(shape), kind=kind, mask=torch.ones(mask))
