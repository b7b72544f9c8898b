"""Compiled models: the perturbation reaches their graphs, or the user hears of it."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from references import ATTACKS, assert_same, batch, loss_on, step
from support import CLASSES, VOCAB
from torch import nn

IDS, LABELS = batch(4, 7)
LOSS = loss_on(IDS, LABELS)
BACKEND = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(VOCAB, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)
        self.double()

    def forward(self, ids):
        return self.head(torch.tanh(self.layer(self.emb(ids))).mean(1))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain_names(found):
    return {name.replace("_orig_mod.", ""): g for name, g in found.items()}


@ATTACKS
@BACKEND
@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
def test_a_compiled_model(build, reference, backend, granularity):
    plain = Mlp()
    expected = step(build(plain, granularity=granularity), plain, LOSS)
    model = torch.compile(Mlp(), backend=backend)
    attack = build(model, granularity=granularity)
    for _ in range(2):
        assert_same(plain_names(step(attack, model, LOSS)), expected)
    attack.close()
    with torch.no_grad():
        assert torch.allclose(model(IDS), plain(IDS))
    assert_same(plain_names(step(build(model, granularity=granularity), model, LOSS)), expected)
