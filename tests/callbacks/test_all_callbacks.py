"""What holds for every callback, whatever its method: one row of ``rows.ROWS`` each."""

import inspect
from functools import cache

import pytest
import torch
from fastNLP import Callback
from fastNLP.core.controllers.loops import TrainBatchLoop
from rows import Probe, each_method, each_row, plainly, train_by_hand, train_shortly
from support import Classifier, assert_untouched, build, callback_of, distance, snapshot, train, weights

import fastnlp_adv
from fastnlp_adv import FGMCallback, RDropCallback
from fastnlp_adv.callbacks import METHODS, AttackCallback, MethodCallback

#: those that take part in the batch step; RobustEvaluateCallback only evaluates, and has a suite of its own
EXPORTED = [
    callback
    for callback in (getattr(fastnlp_adv, name) for name in fastnlp_adv.__all__ if name.endswith("Callback"))
    if issubclass(callback, MethodCallback)
]


def noting(event):
    return lambda self, *_: self.events.append(event)


class Record(Callback):
    """The hooks of a batch in their order, and what they were given."""

    def __init__(self, model=None):
        super().__init__()
        self.model, self.events, self.clean, self.reported, self.outputs = model, [], [], [], {}

    def on_train_batch_begin(self, trainer, batch, indices):
        self.events.append("batch")
        if self.model is not None:
            with torch.no_grad():
                self.clean.append(self.model.train_step(batch["input_ids"], batch["labels"])["loss"].item())

    def on_before_backward(self, trainer, outputs):
        self.events.append("backward")
        self.reported.append(outputs["loss"].item())
        self.outputs = outputs

    on_after_backward = noting("backward done")
    on_before_optimizers_step = noting("step")
    on_after_optimizers_step = noting("step done")
    on_before_zero_grad = noting("zero grad")
    on_after_zero_grad = noting("zero grad done")


@cache
def events_of_plain_training():
    record = Record()
    train_shortly(Classifier(), [record], accumulation_steps=3)
    return record.events


def test_every_exported_callback_has_a_row():
    assert {row.callback for row in METHODS.values()} == set(EXPORTED)
    assert all(getattr(fastnlp_adv, name) is row.method for name, row in METHODS.items())
    assert all(row.callback.method_class is row.method for row in METHODS.values())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_names_its_paper(method):
    assert method.paper in inspect.getdoc(method.method)
    assert method.kind == ("attack" if issubclass(method.callback, AttackCallback) else "regularizer")


@pytest.mark.parametrize("callback", EXPORTED, ids=lambda c: c.__name__)
def test_arguments_are_those_of_the_method_kept_as_given_and_keyword_only_after_the_first(callback):
    theirs = {n: p.default for n, p in inspect.signature(callback.method_class).parameters.items() if n != "model"}
    parameters, made = inspect.signature(callback).parameters, callback()
    assert {n: p.default for n, p in parameters.items()} == theirs
    assert all(getattr(made, n) is p.default for n, p in parameters.items())
    assert all(p.kind is p.KEYWORD_ONLY for p in [*parameters.values()][1:])
    assert {"start", "every"} <= {*parameters}
    assert ("warmup" in parameters) is issubclass(callback, AttackCallback)


@each_row
def test_trains_another_model_than_plain_training_and_leaves_no_trace(row):
    model = Probe()
    before = snapshot(model)
    trainer = train_shortly(model, [row.callback()])
    assert torch.isfinite(weights(model)).all()
    assert distance(model, plainly()) > 1e-6
    assert model.cost == tuple(trainer.global_forward_batches * passes for passes in row.cost)
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn
    assert snapshot(model)[1:] == before[1:]
    assert all(torch.is_tensor(value) for value in trainer.state["adv"].values())


@each_row
def test_trains_as_a_plain_loop_does(row):
    """With accumulation; its steps are those that the tests of each method compare with the definition."""
    ours, theirs = Classifier(dropout=0.3), Classifier(dropout=0.3)
    train_shortly(ours, [row.callback()], accumulation_steps=3)
    train_by_hand(theirs, row.callback().method, accumulation=3)
    assert distance(ours, theirs) < 1e-6


@each_method
def test_before_its_start_it_is_plain_training(row):
    model = Classifier()
    train_shortly(model, [row.callback(start=10**6)])
    assert torch.equal(weights(model), weights(plainly()))


@each_row
def test_hooks_fire_as_in_plain_training(row):
    record = Record()
    train_shortly(Classifier(), [row.callback(), record], accumulation_steps=3)
    assert record.events == events_of_plain_training()


@each_row
def test_reported_loss_is_that_of_the_first_pass(row):
    model, callback = Classifier(dropout=0.0), row.callback()
    record = Record(model)
    trainer = train_shortly(model, [callback, record])
    state = {name: value.item() for name, value in trainer.state["adv"].items()}
    if METHODS[row.method].kind == "regularizer":  # with its terms
        factors = {"bregman": "bregman_weight", "kl": "kl_weight"}
        names = record.outputs.keys() & {"bregman", callback.method_class.name}
        terms = sum(getattr(callback, factors.get(n, "weight")) * record.outputs[n].item() for n in names)
        assert state["loss"] == record.reported[-1] == pytest.approx(record.clean[-1] + terms, abs=1e-6)
        assert callback.method_class.name in names
        assert all(state[name] == record.outputs[name].item() for name in names)
    elif not callback.method.has_two_losses:  # there is no clean pass
        assert state["adv_loss"] == pytest.approx(record.reported[-1], rel=1)
        assert "loss" not in state
        assert record.reported != pytest.approx(record.clean, abs=1e-6)
    elif getattr(callback.method, "replace", False):
        assert all(attacked > clean for attacked, clean in zip(record.reported, record.clean, strict=True))
        assert state["adv_loss"] == record.reported[-1]
        some = callback.method.fraction < 1  # the first pass is on these alone
        assert (state["loss"] == pytest.approx(record.clean[-1], abs=1e-6)) is not some
    else:
        assert record.reported == pytest.approx(record.clean, abs=1e-6)
        assert state["loss"] == record.reported[-1]


WAITING = ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero")


@each_row
def test_step_never_waits_for_the_device(row, monkeypatch):
    """Between the hooks runs the batch step; asking a tensor for its value there would wait."""

    def refuse(*args):
        raise AssertionError("the step asked a tensor for its value")

    def watch(trainer, batch, indices):
        for name in WAITING if trainer.global_forward_batches else ():  # R-Drop looks for misuse in the first batch
            monkeypatch.setattr(torch.Tensor, name, refuse)

    watching = callback_of(on_train_batch_begin=watch, on_train_batch_end=lambda trainer: monkeypatch.undo())
    train_shortly(Classifier(), [watching, row.callback()])


@each_method
def test_accumulation_counts_optimizer_steps(row):
    model = Probe()
    train(model, [row.callback(start=2, every=2)], accumulation_steps=2, n_batches=12)
    acted = 4  # in steps 2 and 4 of 0 to 5, two batches each
    assert model.passes["forward"] == 12 + acted * (row.cost.forwards - 1)


@each_method
def test_the_order_of_callbacks_does_not_matter(row):
    others = [] if METHODS[row.method].kind == "attack" else [FGMCallback]
    others += [] if row.method == "RDrop" else [RDropCallback]
    models = [Classifier(dropout=0.3), Classifier(dropout=0.3)]
    for model, order in zip(models, (1, -1), strict=True):
        callbacks = [row.callback(), *(other() for other in others)][::order]
        state = train_shortly(model, callbacks).state["adv"]
        assert {"adv_loss", "kl"} <= state.keys()
    assert torch.equal(weights(models[0]), weights(models[1]))


NAMES = [
    (name, each, "nothing")
    for name in METHODS
    for each in ("emb_name", "params")
    if each in METHODS[name].method.names()
]
POSITIONS = [
    (m, name, "head") for m, name, _ in NAMES if {"granularity", "params"}.isdisjoint(METHODS[m].method.names())
]
WRONG = {
    "nothing": "`{}`.* got 'nothing'.*`word_embeddings.weight`",
    "head": "that are not looked up.*an `{}` that matches embeddings only",
}


@pytest.mark.parametrize("method, name, wrong", [*NAMES, *POSITIONS])
def test_names_that_do_not_fit_are_refused_when_the_trainer_is_built(method, name, wrong):
    model = Classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=WRONG[wrong].format(name)):
        build(model, [METHODS[method].callback(**{name: wrong})])
    assert_untouched(model, before)
