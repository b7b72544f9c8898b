"""How perturbations reach lookups, and gradients come back, against tables written out as dicts and loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastnlp_adv.taps import Lookup
from fastnlp_adv.taps.perturbation import ByPosition, ByToken

HIDDEN = 3
GRANULARITIES = ("vocab", "sequence", "token")


def lookup_of(ids, grad, padding_idx=None, scale_grad_by_freq=False, number=0):
    module = nn.Embedding(50, HIDDEN, padding_idx=padding_idx, scale_grad_by_freq=scale_grad_by_freq)
    lookup = Lookup(module, ids, ids, number=number)
    lookup.leaf = torch.zeros_like(grad, requires_grad=True)
    lookup.leaf.grad = grad
    return lookup


def perturbation_for(granularity, lookups, total=None):
    if granularity == "vocab":
        return ByToken(list(lookups.values()))
    total = max(lookups) + 1 if total is None else total
    return ByPosition(list(lookups.values()), total, {}, per_token=granularity == "token")


def at(perturbation, number, ids):
    return perturbation.at(Lookup(nn.Embedding(50, HIDDEN), ids, ids, number=number))


def collect(perturbation, lookups):
    return [delta.grad for delta in perturbation.deltas(list(lookups.values()))]


@st.composite
def passes(draw):
    """The lookups of a pass: ids of 0 to 3 dimensions and either integer type, with options, and gradients."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    lookups = {}
    for index in sorted(draw(st.sets(st.integers(0, 4), min_size=1, max_size=3))):
        shape = draw(st.lists(st.integers(1, 4), max_size=3))
        ids = torch.randint(0, 6, shape, generator=g).to(draw(st.sampled_from([torch.int32, torch.int64])))
        grad = torch.randn(*shape, HIDDEN, generator=g, dtype=torch.float64)
        lookups[index] = lookup_of(ids, grad, draw(st.sampled_from([None, 0, 5])), draw(st.booleans()), index)
    return lookups


def positions(ids):
    return [tuple(place) for place in torch.ones_like(ids).nonzero().tolist()]


def by_token(lookups):
    """The gradient of every row of the weight, as `F.embedding` defines it."""
    rows = {}
    for lookup in lookups.values():
        seen = lookup.ids.flatten().tolist()
        for place in positions(lookup.ids):
            token = lookup.ids[place].item()
            if token == lookup.table.padding_idx:
                continue
            share = seen.count(token) if lookup.table.scale_grad_by_freq else 1
            rows[token] = rows.get(token, 0) + lookup.grad[place] / share
    return rows


@given(passes())
def test_vocab_sums_the_gradients_of_a_token_and_reaches_all_its_places(lookups):
    perturbation = perturbation_for("vocab", lookups)
    rows = by_token(lookups)
    perturbation.values = collect(perturbation, lookups)
    for lookup in lookups.values():
        delta = perturbation.at(lookup)
        for place in positions(lookup.ids):
            expected = rows.get(lookup.ids[place].item(), torch.zeros(HIDDEN, dtype=torch.float64))
            torch.testing.assert_close(delta[place], expected)


@given(passes())
def test_vocab_has_one_norm_that_of_the_gradient_of_the_weight(lookups):
    perturbation = perturbation_for("vocab", lookups)
    (delta,) = perturbation.deltas(list(lookups.values()))
    grad = delta.grad
    assert delta.dims == (0, 1)
    expected = sum(float((row**2).sum()) for row in by_token(lookups).values()) ** 0.5
    assert grad.norm().item() == pytest.approx(expected)


@given(passes())
def test_vocab_frees_one_slot_for_every_token_that_can_move(lookups):
    (delta,) = perturbation_for("vocab", lookups).deltas([])
    free = delta.free
    tokens = {int(t) for lookup in lookups.values() for t in lookup.ids[lookup.real().squeeze(-1)].flatten()}
    assert int(free.sum()) == len(tokens)


def test_vocab_follows_tokens_into_other_lookups_and_leaves_unknown_ones_alone():
    seen = {0: lookup_of(torch.tensor([[4, 2]]), torch.ones(1, 2, HIDDEN))}
    perturbation = perturbation_for("vocab", seen)
    perturbation.values = collect(perturbation, seen)
    delta = at(perturbation, 7, torch.tensor([[9, 2, 0, 4, 3]]))
    assert delta[..., 0].tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0]]
    later = {0: lookup_of(torch.tensor([[9, 2]]), torch.full((1, 2, HIDDEN), 5.0))}
    assert sorted(collect(perturbation, later)[0][:, 0].tolist()) == [0.0, 5.0]


@pytest.mark.parametrize("granularity", ["sequence", "token"])
@given(lookups=passes())
def test_a_position_keeps_its_own_gradient_unless_it_is_padding(granularity, lookups):
    perturbation = perturbation_for(granularity, lookups)
    perturbation.values = collect(perturbation, lookups)
    for lookup in lookups.values():
        delta = perturbation.at(lookup)
        for place in positions(lookup.ids):
            expected = lookup.grad[place] * (lookup.ids[place].item() != lookup.table.padding_idx)
            torch.testing.assert_close(delta[place], expected)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_positions_share_a_norm_by_example_or_not_at_all(granularity):
    lookups = {0: lookup_of(torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 3, 4, HIDDEN))}
    perturbation = perturbation_for(granularity, lookups)
    (delta,) = perturbation.deltas([])
    shared = [d % 4 for d in delta.dims]
    assert shared == ([1, 2, 3] if granularity == "sequence" else [3])


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_positions_stay_still_where_no_gradient_came_and_keep_their_shape(granularity):
    lookups = {1: lookup_of(torch.tensor([[4, 2]]), torch.ones(1, 2, HIDDEN), number=1)}
    perturbation = perturbation_for(granularity, lookups)
    assert at(perturbation, 0, torch.tensor([[4, 2]])) is None
    assert collect(perturbation, {})[0].eq(0).all()
    with pytest.raises(RuntimeError, match=r"same shape, but got \(1, 3\) where the first pass had \(1, 2\).*vocab"):
        at(perturbation, 1, torch.tensor([[4, 2, 1]]))


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_positions_refuse_more_lookups_than_the_first_pass_had(granularity):
    ids = torch.tensor([[4, 2]])
    perturbation = perturbation_for(granularity, {0: lookup_of(ids, torch.ones(1, 2, HIDDEN))}, total=2)
    assert at(perturbation, 1, ids) is None
    with pytest.raises(RuntimeError, match=r"look up as often as the first pass, 2 times.*vocab"):
        at(perturbation, 2, ids)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_gradients_are_summed_in_single(granularity, dtype):
    lookups = {0: lookup_of(torch.tensor([[1, 1]]), torch.ones(1, 2, HIDDEN, dtype=dtype))}
    perturbation = perturbation_for(granularity, lookups)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    (delta,) = perturbation.deltas([lookups[0]])
    assert delta.value.dtype == delta.grad.dtype == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_ids_need_not_be_contiguous(granularity):
    ids = torch.tensor([[1, 2, 3], [3, 2, 0]]).t()
    lookups = {0: lookup_of(ids, torch.randn(3, 2, HIDDEN), padding_idx=0, scale_grad_by_freq=granularity == "vocab")}
    perturbation = perturbation_for(granularity, lookups)
    perturbation.values = collect(perturbation, lookups)
    rows = by_token(lookups)
    if granularity == "vocab":
        torch.testing.assert_close(at(perturbation, 0, ids)[1, 1].double(), rows[2].double())
    assert at(perturbation, 0, ids)[2, 1].eq(0).all()
