"""``relative=True``: lengths in rows, each embedding's own, as it was when the attack was built."""

from __future__ import annotations

import pytest
import torch
from references import IDS, LABELS, LOSS, Two
from rows import Row, step_of
from support import Classifier
from torch import nn

from fastnlp_adv import FGM, PGD
from fastnlp_adv.callbacks import METHODS

FIELDS = {"input_ids": IDS, "labels": LABELS}
RELATIVE = [(name, {}) for name, method in METHODS.items() if "relative" in method.method.names()]


def row_of(embedding):
    """The mean length of its rows, with a loop."""
    return sum(float(row.double().norm()) for row in embedding.weight.detach()) / len(embedding.weight)


class Scaled(Classifier):
    """The same function of other word vectors: they are longer, and what is looked up is divided by as much."""

    def __init__(self, by=1.0):
        super().__init__(dropout=0.0)
        self.by = by
        with torch.no_grad():
            self.word_embeddings.weight *= by

    def forward(self, input_ids):
        hidden, _ = self.rnn(self.word_embeddings(input_ids) / self.by)
        return self.head(hidden.mean(1))


def trained(model, method, **arguments):
    """The gradients and perturbation norms of three steps."""
    torch.manual_seed(0)
    attack = Row(method, arguments).attach(model)
    found = []
    for _ in range(3):
        model.zero_grad()
        step_of(attack, model, FIELDS)
        grads = torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "word" not in n])
        found.append((grads, float(attack.perturbation_norm)))
    return found


@pytest.mark.parametrize(("method", "arguments"), [*RELATIVE, ("PGD", {"random_init": True})])
def test_word_vectors_of_another_length_train_the_same(method, arguments):
    """But not where epsilon is in their units."""
    short, long = (trained(Scaled(by), method, relative=True, **arguments) for by in (1.0, 8.0))
    for (one, norm), (other, longer) in zip(short, long, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert longer == pytest.approx(8 * norm, rel=1e-5)
    assert max(norm for _, norm in short) > 0
    absolute = [trained(Scaled(by), method, **arguments)[-1][0] for by in (1.0, 8.0)]
    assert not torch.allclose(*absolute, rtol=1e-3, atol=1e-5)


def test_each_embedding_has_its_own_row():
    """Against two leaves, in double precision."""
    model = Two().double()
    leaves = [model.words(IDS).detach().requires_grad_(), model.shapes(IDS % 12).detach().requires_grad_()]
    grads = torch.autograd.grad(model.loss_at(*leaves), leaves)
    moved = []
    for leaf, grad, table in zip(leaves, grads, (model.words, model.shapes), strict=True):
        per_example = [0.3 * row_of(table) * g / g.norm() for g in grad]
        moved.append(leaf + torch.stack(per_example))
    clean = torch.autograd.grad(model.loss_at(*leaves), model.head.weight)[0]
    expected = clean + torch.autograd.grad(model.loss_at(*moved), model.head.weight)[0]
    fgm = FGM(model, epsilon=0.3, emb_name="[ws]*s.weight", granularity="sequence", relative=True)
    fgm.step(lambda: LOSS(model))
    torch.testing.assert_close(model.head.weight.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_unit_stays_that_of_the_weights_it_was_built_on():
    model = Classifier(dropout=0.0)
    row = row_of(model.word_embeddings)
    fgm = FGM(model, epsilon=0.5, relative=True)
    with torch.no_grad():
        model.word_embeddings.weight *= 3
    fgm.step(lambda: model.train_step(**FIELDS)["loss"])
    assert float(fgm.perturbation_norm) == pytest.approx(0.5 * row, rel=1e-5)
    resumed, anew = FGM(model, epsilon=0.5, relative=True), FGM(model, epsilon=0.5, relative=True)
    resumed.load_state_dict(fgm.state_dict())
    for attack, length in ((resumed, 0.5 * row), (anew, 1.5 * row)):
        attack.step(lambda: model.train_step(**FIELDS)["loss"])
        assert float(attack.perturbation_norm) == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize(
    "method, model, arguments, said",
    [
        ("FGM", Classifier, {"epsilon": 0.5, "relative": True}, "epsilon 0.5 rows = 1.3, shared by the micro-batch"),
        ("FGM", Classifier, {"epsilon": 1.0}, "epsilon 1 = 0.39 rows, shared by the micro-batch"),
        ("FGM", Classifier, {"relative": True, "norm": "linf"}, "epsilon 1 rows = 2.6 in each coordinate"),
        ("FGM", Two, {"emb_name": "*s.weight", "relative": True}, "epsilon 1 rows of each, shared by the micro-batch"),
        ("NEFTune", Classifier, {"relative": True}, "alpha 5 rows = 13, per example"),
    ],
)
def test_the_line_says_lengths_in_both_units(method, model, arguments, said):
    assert Row(method, arguments).attach(model()).describe().endswith(said)


def test_parameters_that_are_not_looked_up_have_no_rows():
    with pytest.raises(ValueError, match=r"Expected `relative` to be False, since `head.weight` .* got True\. Give"):
        FGM(Classifier(), emb_name="head", relative=True)


def test_rows_without_a_length_are_refused():
    model = Classifier()
    nn.init.zeros_(model.word_embeddings.weight)
    with pytest.raises(ValueError, match=r"Expected `relative` to be False, since the rows .* are 0 long .* got True"):
        PGD(model, relative=True)
