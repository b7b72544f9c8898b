"""A model whose dropout depends on the number of the forward, so that it can be repeated; its loss under R-Drop."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

VOCAB, HIDDEN, LENGTH, KL_WEIGHT = 12, 4, 5, 1.5


class Model(nn.Module):
    """Words, one layer and a head."""

    def __init__(self, drop=0.3):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCAB, HIDDEN, padding_idx=0)
        self.layer, self.head = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 3)
        self.double()
        #: the number of forwards so far, and the examples of each
        self.drop, self.calls, self.sizes = drop, 0, []

    def train_step(self, ids, labels):
        pred = self.after(self.words(ids))
        return {"loss": cross_entropy(pred, labels), "pred": pred}

    def after(self, embedded):
        self.calls += 1
        self.sizes.append(len(embedded))
        kept = torch.rand(len(embedded), HIDDEN, generator=torch.Generator().manual_seed(self.calls)) >= self.drop
        return self.head(torch.tanh(self.layer(embedded)).mean(1) * kept)


def kl(p, q):
    """The divergence from logits p to logits q, averaged over all dimensions but the last, the classes."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return (p.exp() * (p - q)).sum() / p[..., 0].numel()


def both(p, q):
    return kl(p, q) + kl(q, p)


def loss_and_pred(model, mode, embedded, labels):
    """Of the model, or of R-Drop in a mode."""
    if mode is None:
        pred = model.after(embedded)
        return cross_entropy(pred, labels), pred
    if mode == "concat":
        first, second = model.after(torch.cat([embedded, embedded])).chunk(2)
    else:
        first, second = model.after(embedded), model.after(embedded)
    loss = (cross_entropy(first, labels) + cross_entropy(second, labels)) / 2
    return loss + KL_WEIGHT * both(first, second) / 2, first
