"""Two families of models, and the passes of VAT, SMART and R3F on embedded inputs, for their references and tests."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from references import assert_same, gradients
from support import Bert, Classifier, collate, samples
from torch.nn.functional import cross_entropy


class Gru:
    """The Classifier of these tests, its embedding replaced."""

    fields = ("input_ids", "labels")

    @staticmethod
    def make(dropout=0.0):
        return Classifier(dropout).double()

    @staticmethod
    def logits(model, batch, d=0.0):
        hidden, _ = model.rnn(model.dropout(model.word_embeddings(batch["input_ids"]) + d))
        return model.head(model.dropout(hidden.mean(1)))


class HuggingFaceBert:
    """A BERT that is given `inputs_embeds`."""

    fields = ("input_ids", "attention_mask", "labels")

    @staticmethod
    def make(dropout=0.0):
        return Bert(dropout).double()

    @staticmethod
    def logits(model, batch, d=0.0):
        embedded = model.back_bone.get_input_embeddings()(batch["input_ids"]) + d
        return model.back_bone(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits


FAMILIES = {"gru": Gru, "bert": HuggingFaceBert}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
SEED = 11  # of noise and dropout


def batches(n=1, size=4):
    """Batches with padding."""
    data = samples(n * size)
    return [collate(data[i : i + size]) for i in range(0, len(data), size)]


def step_of(family, model):
    """The training step of a model, as a function of a batch."""
    return lambda batch: model.train_step(**{name: batch[name] for name in family.fields})


class Passes:
    """Forward passes of a reference: their logits at a perturbation, under new dropout masks or one."""

    def __init__(self, family, model, batch, dropout_mask="new"):
        self.family, self.model, self.batch = family, model, batch
        self.state = torch.get_rng_state() if dropout_mask == "same" else None

    def __call__(self, d=0.0):
        if self.state is not None:
            torch.set_rng_state(self.state)
        return self.family.logits(self.model, self.batch, d)

    def gradient(self, distance, d):
        """Of a distance of the logits, with respect to the perturbation; 0 at padding."""
        d = d.detach().requires_grad_()
        (g,) = torch.autograd.grad(distance(self(d)), d)
        return g * self.real

    @property
    def real(self):
        return (self.batch["input_ids"] != 0).unsqueeze(-1)

    def normal(self, generator):
        """Noise for each real position."""
        hidden = 8 if self.family is Gru else 16
        shape = (*self.batch["input_ids"].shape, hidden)
        return torch.empty(shape, dtype=torch.float64).normal_(generator=generator) * self.real


def kl(p, q):
    """Mean over the examples of the divergence from logits p to logits q, from its definition."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        a, b = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        total = total + sum(x * torch.log(x / y) for x, y in zip(a, b, strict=True))
    return total / len(p)


def both(p, q):
    return kl(p, q) + kl(q, p)


def unit(x):
    """Each example by its length."""
    return torch.stack([each / math.hypot(*each.flatten().tolist()) for each in x])


def assert_oracle(method, reference, family, dropout=0.0, rtol=1e-5):
    """
    The gradients of all parameters are those of a reference.

    :param method: builds the regularizer on a model.
    :param reference: given passes and a generator, the logits of the clean pass and the weighted term.
    """
    ours, batch = family.make(dropout), batches()[0]
    theirs = copy.deepcopy(ours)
    regularizer = method(ours)
    regularizer.stream.generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    outputs = regularizer(step_of(family, ours), batch)
    outputs["loss"].backward()

    torch.manual_seed(SEED)
    passes = Passes(family, theirs, batch, regularizer.dropout_mask)
    clean, term = reference(passes, torch.Generator().manual_seed(SEED))
    loss = cross_entropy(clean, batch["labels"]) + term
    loss.backward()
    weight = regularizer.weight
    rounding = {"rtol": rtol, "atol": 1e-15 * max(weight, 1.0)}  # what sums of p log(p / q) lose
    torch.testing.assert_close(outputs["loss"], loss, **rounding)
    torch.testing.assert_close(weight * outputs[regularizer.name], term.detach(), **rounding)
    assert float(term.detach()) > 1e-9
    assert_same(gradients(ours), gradients(theirs), rtol)
    return ours


def reference_training(family, model, reference, accumulation, *, after_step=lambda: None, seed=1, lr=0.05):
    """Six batches of a loop by hand, as the Trainer of the tests runs them."""
    generator = torch.Generator().manual_seed(seed)
    for i, batch in enumerate(batches(6)):
        clean, term = reference(Passes(family, model, batch), generator)
        ((cross_entropy(clean, batch["labels"]) + term) / accumulation).backward()
        if (i + 1) % accumulation == 0:
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p -= lr * p.grad
            model.zero_grad()
            after_step()
    return model
