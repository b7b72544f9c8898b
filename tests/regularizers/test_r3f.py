"""R3F against its definition, on embedded inputs."""

import pytest
import torch
from smoothness import assert_oracle, both, each_family

from fastnlp_adv.regularizers import R3F


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
