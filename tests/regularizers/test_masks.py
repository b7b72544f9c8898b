"""A mask that VAT, SMART and R3F are given: what it leaves out counts neither in the term nor in its gradients."""

from __future__ import annotations

import pytest
import torch
from references import assert_same, differ, gradients
from torch import nn

from fastnlp_adv import R3F, SMART, VAT


class Tagger(nn.Module):
    """Predicts at each position; at the last one, if it is disturbed, something else in each forward."""

    def __init__(self, disturbed):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(50, 6)
        self.head = nn.Linear(6, 4)
        self.disturbed, self.forwards = disturbed, 0
        self.double()

    def train_step(self, batch):
        embedded = self.emb(batch["ids"])
        pred = self.head(torch.tanh(embedded + embedded.mean(1, keepdim=True)))
        loss = pred.square().mean()
        if self.disturbed:
            self.forwards += 1
            pred = pred + torch.arange(4) * self.forwards * (torch.arange(5) == 4).view(5, 1)
        return {"loss": loss, "pred": pred}


def step(method, mask, *, disturbed):
    """The term and the gradients of a step on sentences of five words."""
    model = Tagger(disturbed)
    ids = torch.randint(1, 50, (3, 5), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    outputs = method(model, mask)(model.train_step, {"ids": ids, "kept": (torch.arange(5) < 4).expand(3, 5)})
    outputs["loss"].backward()
    return outputs, gradients(model)


@pytest.mark.parametrize(
    "method",
    [
        lambda model, mask: VAT(model, epsilon=0.5, xi=0.1, steps=2, mask=mask),
        lambda model, mask: SMART(model, epsilon=0.1, alpha=0.1, noise=0.1, mask=mask),
        lambda model, mask: R3F(model, epsilon=0.5, mask=mask),
    ],
    ids=["vat", "smart", "r3f"],
)
def test_what_a_mask_leaves_out_changes_nothing(method):
    quiet, expected = step(method, "kept", disturbed=False)
    loud, found = step(method, "kept", disturbed=True)
    torch.testing.assert_close(loud["loss"], quiet["loss"])
    assert_same(found, expected)
    without, others = step(method, None, disturbed=False)
    assert abs(without["loss"] - quiet["loss"]) > 1e-4 and differ(others, expected) > 1e-4
