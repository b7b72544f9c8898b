"""The gradient penalty against its definition: a loop over the examples, each alone, and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from references import assert_same, bert, classifier, gradients, words
from support import Bert, Classifier, assert_untouched, collate, samples, since_torch, snapshot, train
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

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
