"""Whatever stops a step, the model is left as it was: weights to the bit, `requires_grad`, hooks, predictions."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from references import IDS, LOSS, assert_same, classifier, gradients, step
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD


def predictions(model):
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("emb_name", [None, "head", "*e*"])  # lookups, parameters that are written, and both
def test_a_with_block_that_fails(emb_name, error):
    model = classifier()
    fgm = FGM(model, emb_name=emb_name)
    before, output = snapshot(model), predictions(model)
    LOSS(model).backward()
    with pytest.raises(error), fgm.attack():
        LOSS(model)
        raise error
    assert_untouched(model, before)
    assert torch.equal(predictions(model), output)


@pytest.mark.parametrize("build", [FGM, lambda m, **k: PGD(m, random_init=True, **k)], ids=["fgm", "pgd"])
def test_embeddings_are_never_written(build):
    """Neither their values nor their version, storage or object, not even for a while."""
    model = classifier()

    def state():
        weight = model.word_embeddings.weight
        return weight._version, weight.data_ptr(), id(weight)

    def loss():
        assert state() == before
        return LOSS(model)

    before = state()
    build(model).step(loss)
    assert state() == before


@pytest.mark.parametrize("compiler", [False, True])
@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
def test_a_copy_taken_in_between_is_a_model_of_its_own(granularity, compiler):
    """An average of weights, or a teacher, copied while an attack watches the model."""
    if compiler:
        importlib.import_module("torch._dynamo")  # the hook is another then
    plain = classifier()
    expected = step(FGM(plain, granularity=granularity), plain, LOSS)
    model = classifier()
    fgm = FGM(model, granularity=granularity)
    LOSS(model).backward()
    other = copy.deepcopy(model)
    with fgm.attack():
        kept = LOSS(other)  # no lookup of the model's
        assert torch.equal(kept, LOSS(classifier()))
        assert torch.equal(predictions(other), predictions(classifier()))
        LOSS(model).backward()
    assert_same(gradients(model), expected)
