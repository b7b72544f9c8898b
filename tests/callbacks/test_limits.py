"""Arguments with which a step of a method is a plain one, or two plain ones."""

from functools import cache

import pytest
from rows import Row, train_shortly
from support import Classifier, distance

#: arguments with which a step is a plain one
LIMITS = [
    Row("NEFTune", {"alpha": 0.0}),
    *(Row(name, {"epsilon": 0.0, "replace": True}) for name in ("FGM", "FGSM", "PGD")),
    Row("FGM", {"adv_weight": 0.0}),
    Row("PGD", {"alpha": 0.0, "replace": True}),
    *(Row(name, {"init": 0.0, "alpha": 0.0, "steps": steps}) for name in ("FreeLB", "TAVAT") for steps in (1, 3)),
    Row("ATTA", {"epsilon": 0.0}),
    Row("ATTA", {"alpha": 0.0}),
    Row("AWP", {"gamma": 0.0, "replace": True}),
    Row("AWP", {"adv_weight": 0.0}),
    Row("SAM", {"rho": 0.0}),
    Row("SAM", {"rho": 0.0, "adaptive": True}),
    Row("RDrop", {"kl_weight": 0.0}),
    *(Row(name, {which: 0.0}) for name in ("VAT", "SMART", "R3F") for which in ("weight", "epsilon")),
    Row("GradientPenalty", {"weight": 0.0}),
]
#: arguments with which it is the sum of two plain ones
TWICE = [
    *(Row(name, {"epsilon": 0.0}) for name in ("FGM", "FGSM", "PGD")),
    Row("PGD", {"alpha": 0.0}),
    Row("AWP", {"gamma": 0.0}),
]


@cache
def plain(lr):
    model = Classifier(dropout=0.0).double()
    train_shortly(model, accumulation_steps=3, lr=lr)
    return model


@pytest.mark.parametrize("row, times", [*((row, 1) for row in LIMITS), *((row, 2) for row in TWICE)], ids=str)
def test_in_the_limit_it_is_plain_training(row, times):
    model = Classifier(dropout=0.0).double()
    train_shortly(model, [row.callback()], accumulation_steps=3, lr=0.05)
    assert distance(model, plain(lr=0.05 * times)) < 1e-12
