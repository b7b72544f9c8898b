"""Taps one by one: what they see, what they change, and what they leave."""

from __future__ import annotations

import pytest
import torch
from references import batch, classifier
from support import VOCAB, assert_untouched, snapshot
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv.forwards import announced
from fastnlp_adv.taps import Embedding, EmbeddingTap, WeightTap

IDS, LABELS = batch(4, 7)
GRANULARITY = pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])


def on_lookups(model, granularity="token"):
    module = model.word_embeddings
    tap = EmbeddingTap(Embedding("word_embeddings.weight", module.weight, [module]), granularity)
    tap.open()
    return tap


def on_head(model):
    tap = WeightTap("head.weight", model.head.weight)
    tap.open()
    return tap


def loss(model, ids=IDS, labels=LABELS):
    return cross_entropy(model(ids), labels)


BOTH = pytest.mark.parametrize("make", [on_lookups, on_head])


@BOTH
def test_open_and_close_are_symmetric_and_idempotent(make):
    model = classifier()
    before = snapshot(model)
    tap = make(model)
    opened = snapshot(model)
    assert opened[2:] != before[2:]
    tap.open()
    assert snapshot(model)[2:] == opened[2:]
    tap.close()
    tap.close()
    assert_untouched(model, before)
    tap.open()
    assert snapshot(model)[2:] == opened[2:]


@BOTH
@pytest.mark.parametrize("how", [{}, {"inner": True}, {"is_read": False}])
def test_watching_changes_no_bit_of_the_loss_or_the_gradients(make, how):
    plain, model = classifier().float(), classifier().float()
    make(model).begin_pass(**how)
    losses = [loss(plain), loss(model)]
    assert torch.equal(*losses)
    for each in losses:
        each.backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


@GRANULARITY
def test_the_gradient_is_that_of_the_lookups(granularity):
    model = classifier(padding_idx=None)
    tap = on_lookups(model, granularity)
    loss(model).backward()
    found = tap.deltas()[0].grad
    embedded = model.word_embeddings.weight[IDS].detach().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(model.head(model.rnn(embedded)[0].mean(1)), LABELS), embedded)
    if granularity == "vocab":
        assert torch.allclose(found.norm(), model.word_embeddings.weight.grad.norm(), rtol=1e-12)
    else:
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_leaves_are_what_a_gradient_only_pass_differentiates():
    model = classifier()
    tap = on_lookups(model)
    loss(model)
    assert tap.leaves == []
    tap.begin_pass(inner=True)
    (grad,) = torch.autograd.grad(loss(model), tap.leaves)
    tap.receive([grad])
    assert torch.equal(tap.deltas()[0].grad, torch.where((IDS != 0).unsqueeze(-1), grad, 0))
    assert all(p.grad is None for p in model.parameters())
    tap.reset()
    assert tap.leaves == []


@GRANULARITY
def test_a_perturbation_is_added_and_taken_off(granularity):
    model = classifier()
    tap = on_lookups(model, granularity)
    clean = model.word_embeddings(IDS)
    loss(model).backward()
    (delta,) = tap.deltas()
    grad = delta.grad
    assert delta.value.eq(0).all() and delta.free.dtype == torch.bool and delta.value.shape == grad.shape
    tap.perturb([grad])
    moved = model.word_embeddings(IDS) - clean
    if granularity == "vocab":
        assert torch.allclose(moved, model.word_embeddings.weight.grad[IDS], atol=1e-12)
    else:
        assert torch.allclose(moved, grad, atol=1e-12)
    tap.reset()
    assert torch.equal(model.word_embeddings(IDS), clean)


def test_a_backward_pass_is_asked_for_once_per_perturbation():
    model = classifier()
    tap = on_lookups(model)
    loss(model).backward()
    tap.perturb([delta.value for delta in tap.deltas()])
    with pytest.raises(RuntimeError, match="a backward pass"):
        tap.deltas()
    kept = loss(model)
    with pytest.raises(RuntimeError, match="a backward pass"):
        tap.deltas()
    kept.backward()
    assert tap.deltas()


def test_gradients_are_those_of_the_last_backward_pass():
    """Two forwards, then their backward passes in either order; both are in one pass, a third forward is another."""
    model = classifier(padding_idx=None)
    tap = on_lookups(model)
    tap.begin_pass()
    other = batch(4, 7, seed=1)[0]
    first, second = loss(model), loss(model, other)
    second.backward()
    first.backward()
    assert len(tap.deltas()) == 2
    tap.reset()
    third = loss(model, other)
    third.backward()
    alone = [delta.grad for delta in tap.deltas()]
    assert len(alone) == 1
    tap.reset()
    loss(model).backward()
    loss(model, other).backward()
    assert torch.equal(tap.deltas()[0].grad, alone[0])


@GRANULARITY
def test_no_gradient_is_computed_where_none_is_read(granularity):
    """The perturbation is added all the same."""
    model = classifier()
    tap = on_lookups(model, granularity)
    tap.begin_pass()
    loss(model).backward()
    (delta,) = tap.deltas()
    tap.perturb([delta.grad])
    tap.begin_pass()
    read = loss(model)
    assert all(leaf.requires_grad for leaf in tap.leaves)
    tap.begin_pass(is_read=False)
    unread = loss(model)
    assert torch.equal(unread, read) and tap.has_lookups
    assert not any(leaf.requires_grad for leaf in tap.leaves)
    unread.backward()
    assert not tap.has_grad


@GRANULARITY
def test_lookups_of_the_same_number_and_copies_are_summed(granularity):
    model = classifier(padding_idx=None)
    tap = on_lookups(model, granularity)

    def pass_over(*forwards):
        tap.begin_pass()
        total = 0
        for ids, labels, announcement in forwards:
            with announced(**announcement):
                total = total + cross_entropy(model(ids), labels, reduction="sum")
        total.backward()
        (delta,) = tap.deltas()
        tap.reset()
        # With `"vocab"`, the number of slots depends on that of the lookups.
        return delta.grad.norm(dim=-1).sum() if granularity == "vocab" else delta.grad

    once = pass_over((IDS, LABELS, {}))
    twice = pass_over((IDS, LABELS, {}), (IDS, LABELS, {}))
    doubled = pass_over((torch.cat([IDS, IDS]), torch.cat([LABELS, LABELS]), {"copies": 2, "rows": len(IDS)}))
    assert twice.shape == doubled.shape == once.shape
    assert torch.allclose(twice, 2 * once, rtol=1e-12) and torch.allclose(doubled, 2 * once, rtol=1e-12)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_a_backward_pass_counts_from_its_first_lookup(granularity):
    """Nothing tells a plain loop that a forward is dropped. Here that made two lookups, and the next makes one."""
    model = classifier()
    tap = on_lookups(model, granularity)
    loss(model), loss(model, batch(4, 5, seed=1)[0])
    loss(model).backward()
    (delta,) = tap.deltas()
    assert delta.number == 0 and delta.grad.shape[:2] == IDS.shape
    tap.perturb([delta.grad])
    clean = model.word_embeddings.weight[IDS]
    assert torch.allclose(model.word_embeddings(IDS) - clean, delta.grad, atol=1e-12)
    with pytest.raises(RuntimeError, match="look up as often as the first pass, 1 times"):
        model.word_embeddings(IDS)


class TestWeightTap:
    def test_the_gradient_is_that_of_the_last_backward_pass(self):
        model = classifier()
        tap = on_head(model)
        other = batch(4, 7, seed=1)
        loss(model, *other).backward()
        first = model.head.weight.grad.clone()
        assert torch.equal(tap.deltas()[0].grad, first)
        loss(model).backward()
        assert torch.allclose(tap.deltas()[0].grad, model.head.weight.grad - first, atol=1e-14)

    def test_perturbations_start_from_the_weight_and_not_from_each_other(self):
        model = classifier()
        tap = on_head(model)
        origin = model.head.weight.detach().clone()
        loss(model).backward()
        for factor in (1.0, 3.0):
            tap.perturb([torch.full_like(origin, factor)])
            assert torch.equal(model.head.weight, origin + factor)
        tap.reset()
        assert torch.equal(model.head.weight, origin)
        tap.reset()
        assert torch.equal(model.head.weight, origin)

    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2)])
    def test_parameters_of_any_shape_have_one_norm(self, shape):
        param = nn.Parameter(torch.ones(shape))
        tap = WeightTap("p", param)
        tap.open()
        (2 * param).sum().backward()
        (delta,) = tap.deltas()
        assert delta.value.shape == shape and delta.dims == tuple(range(len(shape))) and delta.free is None

    def test_sparse_gradients_are_made_dense(self):
        module = nn.Embedding(VOCAB, 3, sparse=True)
        tap = WeightTap("weight", module.weight)
        tap.open()
        module(IDS).sum().backward()
        assert torch.equal(tap.deltas()[0].grad, module.weight.grad.to_dense())
        tap.close()
