"""Gradient checkpointing runs a forward again in the backward pass: the same result, or refused by name."""

from __future__ import annotations

import pytest
import torch
from references import ATTACKS, LOSS, assert_same, each_granularity, step
from support import CLASSES, VOCAB, assert_untouched, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastnlp_adv import FGM, PGD


class Checkpointed(nn.Module):
    """Embedding, layer, head; what is inside a checkpoint is chosen."""

    def __init__(self, spans=None, use_reentrant=False):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(VOCAB, 6, padding_idx=0)
        self.layer = nn.Linear(6, 6)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(6, CLASSES)
        self.spans, self.use_reentrant = spans, use_reentrant
        self.double()

    def upper(self, x):
        return self.head(self.dropout(torch.tanh(self.layer(x))).mean(1))

    def forward(self, ids):
        if self.spans == "layer":
            return checkpoint(self.upper, self.emb(ids), use_reentrant=self.use_reentrant)
        if self.spans == "embedding":
            return checkpoint(lambda ids: self.upper(self.emb(ids)), ids, use_reentrant=self.use_reentrant)
        return self.upper(self.emb(ids))


def seeded(model):
    """Dropout, to see that the second forward draws the same masks."""
    torch.manual_seed(4)
    return LOSS(model)


@ATTACKS
@each_granularity
@pytest.mark.parametrize("spans", ["layer", "embedding"])
@pytest.mark.parametrize("replace", [False, True])
def test_checkpoints_that_are_not_reentrant_change_nothing(build, reference, granularity, spans, replace):
    found = []
    for model in (Checkpointed(), Checkpointed(spans)):
        found.append(step(build(model, granularity=granularity, replace=replace), model, seeded))
    assert_same(*found)


@pytest.mark.parametrize("attack", [PGD, lambda m: FGM(m, replace=True)], ids=["pgd", "fgm-replace"])
def test_passes_that_stop_at_the_embedding_refuse_reentrant_checkpoints(attack):
    model = Checkpointed("layer", use_reentrant=True)
    before = snapshot(model)
    with attack(model) as attack, pytest.raises(RuntimeError, match=r"to be non-reentrant.*`use_reentrant=False`"):
        step(attack, model, seeded)
    assert_untouched(model, before)
