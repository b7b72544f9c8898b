"""The gradient penalty against its definition: a loop over the examples, each alone, and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from references import add, assert_same, bert, classifier, gradients, words
from support import (
    Bert,
    Classifier,
    assert_untouched,
    collate,
    loader,
    samples,
    since_torch,
    snapshot,
    train,
    weights,
)
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from fastnlp_adv import FGMCallback
from fastnlp_adv.callbacks import GradientPenaltyCallback
from fastnlp_adv.regularizers.gradient_penalty import GradientPenalty

BATCH = collate(samples(5, seed=2))
assert (BATCH["input_ids"] == 0).any()


def logits(model, embedded, mask):
    """The prediction of either model on embedded inputs."""
    if isinstance(model, Classifier):
        return model.head(model.rnn(embedded)[0].mean(1))
    return model(inputs_embeds=embedded, attention_mask=mask).logits


def objective(model):
    def step(batch):
        mask = {} if isinstance(model, Classifier) else {"attention_mask": batch["attention_mask"]}
        pred = model(batch["input_ids"], **mask)
        pred = pred if isinstance(pred, torch.Tensor) else pred.logits
        return {"loss": cross_entropy(pred, batch["labels"]), "pred": pred}

    return step


def by_definition(model, batch, weight):
    """``mean_i L_i + weight / 2 * mean_i |grad L_i|^2``: each example by itself, each position by itself."""
    losses, penalties = [], []
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        embedded = words(model)(ids[None])
        loss = cross_entropy(logits(model, embedded, mask[None]), label[None])
        (grad,) = torch.autograd.grad(loss, embedded, create_graph=True)
        losses.append(loss)
        penalties.append(sum(g @ g for g, i in zip(grad[0], ids.tolist(), strict=True) if i != 0))
    n = len(losses)
    return sum(losses) / n + weight / 2 * sum(penalties) / n, sum(penalties) / (2 * n)


MODELS = pytest.mark.parametrize("make", [classifier, bert])


@MODELS
@pytest.mark.parametrize("weight", [0.0, 1.0, 30.0])
def test_loss_penalty_and_gradients_are_those_of_the_definition(make, weight):
    model = make()
    outputs = GradientPenalty(model, weight)(objective(model), BATCH)
    outputs["loss"].backward()
    twin = make()
    loss, penalty = by_definition(twin, BATCH, weight)
    loss.backward()
    torch.testing.assert_close(outputs["loss"], loss, rtol=1e-10, atol=0)
    torch.testing.assert_close(outputs["gradient_penalty"], penalty.detach(), rtol=1e-10, atol=0)
    assert_same(
        gradients(model), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in twin.named_parameters()}
    )


def test_gradient_of_the_penalty_by_finite_differences():
    """Along a random direction of all parameters."""
    model, h = classifier(), 1e-5
    method = GradientPenalty(model, 10.0)
    method(objective(model), BATCH)["loss"].backward()
    direction = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double()
        for i, p in enumerate(model.parameters())
    ]
    direction[0][0] = 0  # the padding row is not trained
    slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), direction, strict=True):
                p += sign * h * d
        values.append(GradientPenalty(moved, 10.0)(objective(moved), BATCH)["loss"].item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("kind", ["classifier", "bert"])
def test_in_a_trainer(kind, accumulation):
    model = classifier() if kind == "classifier" else Bert(0.0).double()
    twin = copy.deepcopy(model)
    inner = twin if kind == "classifier" else twin.back_bone
    start = weights(model)
    trainer = train(model, [GradientPenaltyCallback(3.0)], accumulation_steps=accumulation, n_batches=-1, n_epochs=1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    for number, each in enumerate(loader(), start=1):
        loss, penalty = by_definition(inner, each, 3.0)
        (loss / accumulation).backward()
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    moved = weights(twin) - start
    assert (weights(model) - start - moved).norm() < 1e-5 * moved.norm()
    assert trainer.state["adv"]["gradient_penalty"].item() == pytest.approx(penalty.item(), rel=1e-6)


def test_under_fgm_both_passes_have_their_penalty():
    model, plain = classifier(), classifier()
    train(model, [GradientPenaltyCallback(5.0), FGMCallback(0.5)], data=samples(4), n_batches=1)
    each = next(iter(loader()))
    clean, _ = by_definition(plain, each, 5.0)
    clean.backward()
    first = gradients(plain)
    grad = first["word_embeddings.weight"]
    moved = copy.deepcopy(plain)
    with torch.no_grad():
        moved.word_embeddings.weight += 0.5 * grad / grad.norm()
    moved.zero_grad()
    by_definition(moved, each, 5.0)[0].backward()
    total = add(first, gradients(moved))
    expected = {n: p.detach() - 0.05 * total[n] for n, p in plain.named_parameters()}
    assert_same({n: p.detach() for n, p in model.named_parameters()}, expected, 1e-8)


@since_torch(2, 3, "fused attention has no second derivative, and a context without it,")
def test_fused_attention_is_refused_with_the_setting_that_helps():
    model = Bert(0.0, attn_implementation="sdpa")
    before = snapshot(model)
    with pytest.raises(
        RuntimeError, match=r"flash_attention.*not implemented.*attn_implementation='eager'.*SDPBackend.MATH"
    ):
        train(model, [GradientPenaltyCallback()])
    assert_untouched(model, before)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        train(model, [GradientPenaltyCallback()], n_batches=1)
    train(Bert(0.0, attn_implementation="eager"), [GradientPenaltyCallback()], n_batches=1)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * 2


def test_custom_functions_without_a_second_derivative_are_refused():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 3))
    with pytest.raises(RuntimeError, match=r"second derivative, but got one without \(a custom"):
        GradientPenalty(model)(lambda b: {"loss": Once.apply(model(b)).square().mean()}, BATCH["input_ids"])
