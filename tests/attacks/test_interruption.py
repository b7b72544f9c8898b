"""Whatever stops a step, the model is left as it was: weights to the bit, `requires_grad`, hooks, predictions."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from references import assert_same, batch, classifier, gradients, loss_on, step
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD

IDS, LABELS = batch(4, 7)
LOSS = loss_on(IDS, LABELS)
ERRORS = pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
#: lookups, and parameters that are written
NAMES = pytest.mark.parametrize("emb_name", [None, "head", "*e*"])


class Fails:
    """A loss that fails in the forward or backward pass of a given number."""

    def __init__(self, model, where, number, error):
        self.model, self.where, self.number, self.error = model, where, number, error
        self.calls = {"forward": 0, "backward": 0}

    def __call__(self):
        self.count("forward")
        logits = self.model(IDS)
        logits.register_hook(lambda grad: self.count("backward"))
        return torch.nn.functional.cross_entropy(logits, LABELS)

    def count(self, where):
        if where == self.where and self.calls[where] == self.number:
            raise self.error("made to fail")
        self.calls[where] += 1


def predictions(model):
    with torch.no_grad():
        return model(IDS)


@ERRORS
@NAMES
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


@ERRORS
@NAMES
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_attack_whose_closure_fails(number, where, emb_name, error):
    """The block is not entered yet, so nobody else would take the perturbation off."""
    model = classifier()
    pgd = PGD(model, steps=4, emb_name=emb_name)
    before, output = snapshot(model), predictions(model)
    LOSS(model).backward()
    with pytest.raises(error, match="made to fail"):
        pgd.attack(Fails(model, where, number, error))
    assert_untouched(model, before)
    assert torch.equal(predictions(model), output)


@pytest.mark.parametrize("build", [FGM, lambda m, **k: PGD(m, random_init=True, **k)], ids=["fgm", "pgd"])
def test_embeddings_are_never_written(build):
    """Neither their values nor their version, storage or object, not even for a while."""
    model = classifier()
    weight = model.word_embeddings.weight
    state = (weight._version, weight.data_ptr(), id(weight))
    attack = build(model)

    def loss():
        assert (weight._version, weight.data_ptr(), id(model.word_embeddings.weight)) == state
        return LOSS(model)

    attack.step(loss)
    assert (weight._version, weight.data_ptr(), id(model.word_embeddings.weight)) == state


@pytest.mark.parametrize("build", [FGM, lambda m, **k: PGD(m, **k)], ids=["fgm", "pgd"])
def test_written_parameters_keep_their_storage(build):
    """`param.data = ...` would leave views, flattened buckets and shared memory behind."""
    model = classifier()
    view = model.head.weight.detach().view(-1)
    attack = build(model, emb_name="head")
    seen = []
    attack.step(lambda: seen.append(view.clone()) or LOSS(model))
    assert torch.equal(view.view_as(model.head.weight), model.head.weight)
    assert not torch.equal(seen[-1], seen[0])


@pytest.mark.parametrize("emb_name", [None, "head"])
def test_a_copy_taken_after_closing_carries_nothing(emb_name):
    model = classifier()
    clean = snapshot(model)
    fgm = FGM(model, emb_name=emb_name)
    fgm.step(lambda: LOSS(model))
    fgm.close()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_untouched(other, clean)
        assert not any(m._forward_hooks_with_kwargs for m in other.modules())


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
