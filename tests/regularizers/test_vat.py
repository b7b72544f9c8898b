"""VAT against its definition, on embedded inputs."""

import math

import pytest
import torch
from smoothness import Gru, Passes, assert_oracle, batches, each_family, kl, unit
from support import Classifier, distance, loader, samples, train

from fastnlp_adv.callbacks import VATCallback
from fastnlp_adv.regularizers import VAT


def reference(epsilon=1.0, xi=1e-2, steps=1, weight=1.0):
    """The definition, with a gradient at the perturbation for every power iteration."""

    def term(passes, generator):
        clean = passes()
        d = unit(passes.normal(generator))
        for _ in range(steps):
            d = unit(passes.gradient(lambda q: kl(clean.detach(), q), xi * d))
        return clean, weight * kl(clean.detach(), passes(epsilon * d))

    return term


@each_family
@pytest.mark.parametrize("arguments", [{}, {"epsilon": 0.4, "xi": 0.1, "steps": 3, "weight": 0.5}])
def test_gradients_are_those_of_the_definition(family, arguments):
    assert_oracle(lambda m: VAT(m, **arguments), reference(**arguments), family)


@each_family
@pytest.mark.parametrize("dropout_mask", ["new", "same"])
def test_with_dropout(family, dropout_mask):
    assert_oracle(lambda m: VAT(m, 0.5, dropout_mask=dropout_mask), reference(0.5), family, dropout=0.2)


class Unlabelled(Classifier):
    def train_step(self, input_ids):
        return {"pred": self(input_ids)}


def test_batches_without_labels_train_on_the_term_alone():
    ours, theirs = Unlabelled(0.0).double(), Classifier(0.0).double()
    for sample in (data := samples()):
        del sample["labels"]
    trainer = train(ours, [VATCallback(3.0)], n_batches=6, train_dataloader=loader(data))
    generator = torch.Generator().manual_seed(1)
    for batch in batches(6):
        reference(3.0)(Passes(Gru, theirs, batch), generator)[1].backward()
        with torch.no_grad():
            for p in theirs.parameters():
                p -= 0.05 * p.grad
        theirs.zero_grad()
    assert distance(ours, theirs) < 1e-8
    assert distance(ours, Classifier(0.0)) > 1e-5
    assert torch.equal(trainer.state["adv"]["loss"], trainer.state["adv"]["vat"])


def test_an_example_without_a_gradient_is_not_perturbed():
    """The third prediction does not depend on its input, the first is not finite in its slope."""
    model, batch = Gru.make(), batches()[0]
    where = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64).unsqueeze(-1)
    vat, seen = VAT(model), []

    def forward(batch):
        seen.append(vat.taps[0]._perturbation)
        pred = model(batch["input_ids"]) * where
        if len(seen) == 2:
            pred.register_hook(lambda g: g * torch.tensor([math.inf, 1, 1, 1]).unsqueeze(-1))
        return {"pred": pred}

    vat(forward, batch)["loss"].backward()
    sizes = [math.hypot(*d.flatten().tolist()) for d in seen[-1].deltas([])[0].value]
    assert sizes == pytest.approx([0.0, 1.0, 0.0, 1.0])
    assert all(p.grad.isfinite().all() for p in model.parameters())
