"""Methods without a model: what can be done with them before and after they are attached."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from fastNLP import CheckpointCallback
from rows import each_method, step_of
from support import Classifier, build, collate, samples, snapshot, train, weights

from fastnlp_adv import AWP, FGM, PGD, FGMCallback, RDropCallback, TAVATCallback
from fastnlp_adv.callbacks import METHODS

NEED_A_MODEL = [name for name, entry in METHODS.items() if entry.method.needs_model]
BATCH = collate(samples(4))
del BATCH["attention_mask"]


def trained(method, model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(steps):
        step_of(method, model, BATCH)
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


@each_method
def test_attaching_later_is_building_on_the_model(row):
    one, other = Classifier(), Classifier()
    late = METHODS[row.method].method(**row.arguments)
    assert late.attach(other) is late
    assert torch.equal(trained(METHODS[row.method].method(one, **row.arguments), one), trained(late, other))


@each_method
def test_an_unattached_method_is_copied_and_pickled_with_its_arguments(row):
    method = METHODS[row.method].method(**row.arguments)
    for other in (copy.copy(method), copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other.values() == method.values()
        assert other.describe() == method.describe()


@pytest.mark.parametrize("name", NEED_A_MODEL)
def test_an_unattached_method_cannot_be_run_and_says_so(name):
    method, model = METHODS[name].method(), Classifier()
    with pytest.raises(RuntimeError, match=rf"Expected {name} to be attached to a model, but got none. Call `attach"):
        step_of(method, model, BATCH)
    with pytest.raises(RuntimeError, match="to be attached to a model"):
        method.open()


def test_detaching_keeps_what_is_remembered_and_takes_the_hooks_off():
    model = Classifier()
    before = snapshot(model)
    method = FGM(model, fraction=0.5)
    trained(method, model, 1)
    drawn = method.state_dict()["choice"]["generator"]
    method.detach()
    assert method.model is None and snapshot(model)[1:] == before[1:]
    assert torch.equal(method.state_dict()["choice"]["generator"], drawn)
    method.attach(model)
    assert torch.equal(method.state_dict()["choice"]["generator"], drawn)
    assert method.forget().attach(model).progress.batches == 0


def test_a_method_is_attached_to_one_model_at_a_time():
    method = FGM(Classifier())
    with pytest.raises(ValueError, match=r"Expected FGM to be unattached, but got .* Call `detach"):
        method.attach(Classifier())


@pytest.mark.parametrize(
    "method, name, value",
    [(FGM, "emb_name", "word"), (FGM, "granularity", "token"), (PGD, "relative", True), (AWP, "params", "head")],
)
def test_what_hooks_are_made_of_stays_while_a_method_is_attached(method, name, value):
    attached = method(Classifier())
    before = getattr(attached, name)
    with pytest.raises(ValueError, match=rf"Expected `{name}` to stay .* Call `detach\(\)`"):
        setattr(attached, name, value)
    assert getattr(attached, name) == before
    setattr(attached.detach(), name, value)
    assert getattr(attached, name) == value


@pytest.mark.parametrize("owner", [FGM, FGMCallback])
def test_misspelt_names_are_refused_with_the_nearest(owner):
    with pytest.raises(TypeError, match=rf"Expected an argument of {owner.__name__}, but got `eps`. Did you mean"):
        owner(eps=1.0)
    with pytest.raises(TypeError, match=r"It has epsilon, .*granularity"):
        owner(nonsense=1.0)
    made = owner()
    with pytest.raises(AttributeError, match=r"but got `epsilom`. Did you mean `epsilon`\?"):
        made.epsilom = 3
    assert made.epsilon == 1.0


def test_two_trainers_may_be_built_with_one_callback_before_either_runs():
    callback = FGMCallback()
    models = [Classifier(), Classifier()]
    trainers = [build(model, [callback]) for model in models]
    for trainer in trainers:
        torch.manual_seed(1)
        trainer.run()
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert callback.method.model is None


def test_a_callback_of_another_training_begins_anew():
    """The table of TA-VAT is of the examples of one training."""
    callback, one, other = TAVATCallback(), Classifier(), Classifier()
    train(Classifier(), [callback])
    train(one, [callback])
    train(other, [TAVATCallback()])
    assert torch.equal(weights(one), weights(other))


def test_states_of_other_methods_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="Expected the state of FGM, but got one with weight"):
        FGM(Classifier()).load_state_dict({"weight": 1})


def test_states_of_version_0_2_are_read():
    """They have no count of batches and no losses that the strength follows."""
    method = FGM(Classifier())
    state = method.state_dict()
    del state["batches"], state["learning"]
    method.load_state_dict(state)
    assert method.progress.batches == 0


def test_a_checkpoint_that_is_loaded_before_the_training_begins_is_kept(tmp_path):
    saver = CheckpointCallback(folder=tmp_path, every_n_batches=3, save_object="trainer")
    train(Classifier(), [TAVATCallback(), RDropCallback(), saver], n_batches=6)
    callback = TAVATCallback()
    trainer = build(Classifier(), [callback, RDropCallback()], n_batches=6)
    trainer.load_checkpoint(str(next(tmp_path.rglob("*batch_3"))))
    assert callback.method.model is None
    tables = callback.method.state_dict()["tables"]
    callback.on_train_begin(trainer)
    assert all(torch.equal(callback.method.tables[name], table) for name, table in tables.items())
    callback.on_train_end(trainer)


def test_a_failing_attach_leaves_the_method_unattached():
    method = FGM(emb_name="nothing")
    with pytest.raises(ValueError, match="emb_name"):
        method.attach(Classifier())
    assert method.model is None and method.taps == []
    method.emb_name = None
    method.attach(Classifier())


def test_another_object_in_place_of_the_model_is_named():
    with pytest.raises(TypeError, match=r"Expected `model` to be a torch\.nn\.Module, but got float"):
        FGM(1.0)
