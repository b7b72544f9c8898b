"""R3F against its definition, on embedded inputs."""

import math

import pytest
import torch
from smoothness import FAMILIES, assert_oracle, batches, both
from support import Classifier

from fastnlp_adv.regularizers import R3F
from fastnlp_adv.taps import Lookup

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def reference(epsilon=0.1, weight=1.0, noise="normal"):
    def term(passes, generator):
        clean = passes()
        if noise == "normal":
            z = epsilon * passes.normal(generator)
        else:
            z = torch.empty(*passes.real.shape[:2], passes.normal(torch.Generator()).shape[-1], dtype=torch.float64)
            z = epsilon * (2 * z.uniform_(0, 1, generator=generator) - 1) * passes.real
        return clean, weight * both(clean, passes(z))

    return term


@each_family
@pytest.mark.parametrize(
    "arguments", [{}, {"epsilon": 0.2, "weight": 0.5, "noise": "uniform"}, {"epsilon": 1e-5, "weight": 1e10}]
)
def test_gradients_are_those_of_the_definition(family, arguments):
    """With the paper's epsilon too, weighted so that the term counts as much as the loss."""
    assert_oracle(lambda m: R3F(m, **arguments), reference(**arguments), family)


@each_family
@pytest.mark.parametrize("dropout_mask", ["new", "same"])
def test_with_dropout(family, dropout_mask):
    assert_oracle(lambda m: R3F(m, 0.2, dropout_mask=dropout_mask), reference(0.2), family, dropout=0.2)


@pytest.mark.parametrize(("noise", "size"), [("normal", 1.0), ("uniform", 1 / math.sqrt(3))])
def test_noise_has_the_size_it_should_and_none_at_padding(noise, size):
    model = Classifier()
    r3f = R3F(model, epsilon=0.1, noise=noise)
    ids = batches(10, size=40)[0]["input_ids"]
    lookup = Lookup(model.word_embeddings, ids, ids, number=0)
    z = r3f.start_at(lookup, torch.zeros(*ids.shape, 64))
    assert (z[ids == 0] == 0).all()
    assert z[ids != 0].std().item() == pytest.approx(0.1 * size, rel=0.05)
    assert noise == "normal" or z.abs().max() <= 0.1
