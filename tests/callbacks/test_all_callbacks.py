"""What holds for every callback, whatever its method: one row of ``rows.ROWS`` each."""

import inspect

import pytest
import torch
from equal import zip_equal
from fastNLP import Callback
from fastNLP.core.controllers.loops import TrainBatchLoop
from rows import Probe, Row, each_row
from support import Classifier, assert_untouched, build, distance, snapshot, train, weights

import fastnlp_adv
from benchmarks.methods import METHODS
from fastnlp_adv.callbacks import AttackCallback, MethodCallback

#: attacks whose first pass is perturbed already
#: arguments with which a step is a plain one
LIMITS = [
    Row("NEFTune", {"alpha": 0.0}),
    Row("FGM", {"epsilon": 0.0, "replace": True}),
    Row("FGM", {"adv_weight": 0.0}),
    Row("FGSM", {"epsilon": 0.0, "replace": True}),
    Row("PGD", {"epsilon": 0.0, "replace": True}),
    Row("PGD", {"alpha": 0.0, "replace": True}),
    Row("FreeLB", {"init": 0.0, "alpha": 0.0}),
    Row("TAVAT", {"init": 0.0, "alpha": 0.0}),
    Row("ATTA", {"epsilon": 0.0}),
    Row("ATTA", {"alpha": 0.0}),
    Row("AWP", {"gamma": 0.0, "replace": True}),
    Row("AWP", {"adv_weight": 0.0}),
    Row("RDrop", {"kl_weight": 0.0}),
    Row("VAT", {"weight": 0.0}),
    Row("VAT", {"epsilon": 0.0}),
    Row("SMART", {"weight": 0.0}),
    Row("SMART", {"epsilon": 0.0}),
    Row("R3F", {"weight": 0.0}),
    Row("R3F", {"epsilon": 0.0}),
    Row("GradientPenalty", {"weight": 0.0}),
]
#: arguments with which it is the sum of two plain ones
TWICE = [Row("FGM", {"epsilon": 0.0}), Row("PGD", {"alpha": 0.0}), Row("AWP", {"gamma": 0.0})]

#: those that take part in the batch step; RobustEvaluateCallback only evaluates, and has a suite of its own
EXPORTED = [
    callback
    for callback in (getattr(fastnlp_adv, name) for name in fastnlp_adv.__all__ if name.endswith("Callback"))
    if issubclass(callback, MethodCallback)
]


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

    def on_after_backward(self, trainer):
        self.events.append("backward done")

    def on_before_optimizers_step(self, trainer, optimizers):
        self.events.append("step")

    def on_after_optimizers_step(self, trainer, optimizers):
        self.events.append("step done")

    def on_before_zero_grad(self, trainer, optimizers):
        self.events.append("zero grad")

    def on_after_zero_grad(self, trainer, optimizers):
        self.events.append("zero grad done")


def test_every_exported_callback_has_a_row():
    assert {row.callback for row in METHODS.values()} == set(EXPORTED)
    assert all(getattr(fastnlp_adv, name) is row.method for name, row in METHODS.items())
    assert all(row.callback.method_class is row.method for row in METHODS.values())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_names_its_paper(method):
    assert method.paper in inspect.getdoc(method.method)
    assert method.kind == ("attack" if issubclass(method.callback, AttackCallback) else "regularizer")


@pytest.mark.parametrize("callback", EXPORTED, ids=lambda c: c.__name__)
def test_arguments_are_stored_as_given_and_keyword_only_after_the_first(callback):
    parameters = list(inspect.signature(callback).parameters.values())
    made = callback()
    assert all(getattr(made, p.name) is p.default for p in parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert {"start", "every", "log_every"} <= {p.name for p in parameters}


@pytest.mark.parametrize("callback", EXPORTED, ids=lambda c: c.__name__)
def test_arguments_agree_with_those_of_the_method(callback):
    theirs = {n: p.default for n, p in inspect.signature(callback.method_class).parameters.items() if n != "model"}
    ours = {n: p.default for n, p in inspect.signature(callback).parameters.items()}
    assert {n: ours[n] for n in theirs} == theirs
    assert set(ours) - set(theirs) == {"start", "every", "log_every"}


@each_row
def test_trains_another_model_than_plain_training_and_leaves_no_trace(row):
    model, plain = Probe(), Classifier()
    before = snapshot(model)
    trainer = train(model, [row.callback()], n_batches=12)  # two epochs: the first of ATTA is plain
    train(plain, n_batches=12)
    assert torch.isfinite(weights(model)).all()
    assert distance(model, plain) > 1e-6
    assert model.cost == tuple(trainer.global_forward_batches * passes for passes in row.cost)
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn
    assert snapshot(model)[1:] == before[1:]
    assert all(torch.is_tensor(value) for value in trainer.state["adv"].values())


@each_row
def test_building_a_trainer_changes_nothing(row):
    model = Classifier()
    before = snapshot(model)
    trainer = build(model, [row.callback()])
    assert_untouched(model, before)
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn


@each_row
def test_same_callback_trains_a_second_trainer_alike(row):
    callback, models, states = row.callback(), [Classifier(), Classifier()], []
    for model in models:
        states.append(train(model, [callback], n_batches=6).state["adv"])
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert {k: v.item() for k, v in states[0].items()} == {k: v.item() for k, v in states[1].items()}


@each_row
def test_before_its_start_it_is_plain_training(row):
    model, plain = Classifier(), Classifier()
    train(model, [row.callback(start=10**6)], n_batches=6)
    train(plain, n_batches=6)
    assert torch.equal(weights(model), weights(plain))


@each_row
@pytest.mark.parametrize("accumulation", [1, 3])
def test_hooks_fire_as_in_plain_training(row, accumulation):
    ours, plain = Record(), Record()
    train(Classifier(), [row.callback(), ours], accumulation_steps=accumulation, n_batches=6)
    train(Classifier(), [plain], accumulation_steps=accumulation, n_batches=6)
    assert ours.events == plain.events


@each_row
def test_reported_loss_is_that_of_the_first_pass(row):
    model, callback = Classifier(dropout=0.0), row.callback()
    record = Record(model)
    trainer = train(model, [callback, record], n_batches=12)
    state = {name: value.item() for name, value in trainer.state["adv"].items()}
    if METHODS[row.method].kind == "regularizer":  # with its terms
        factors = {"bregman": "bregman_weight", "kl": "kl_weight"}
        names = record.outputs.keys() & {"bregman", callback.method_class.name}
        terms = sum(getattr(callback, factors.get(n, "weight")) * record.outputs[n].item() for n in names)
        assert state["loss"] == record.reported[-1] == pytest.approx(record.clean[-1] + terms, abs=1e-6)
        assert state[callback.method_class.name] == record.outputs[callback.method_class.name].item()
    elif not hasattr(callback, "replace"):  # there is no clean pass
        assert state["adv_loss"] == pytest.approx(record.reported[-1], rel=1)
        assert "loss" not in state
        assert record.reported != pytest.approx(record.clean, abs=1e-6)
    elif callback.replace:
        assert all(attacked > clean for attacked, clean in zip_equal(record.reported, record.clean))
        assert state["adv_loss"] == record.reported[-1]
        assert state["loss"] == pytest.approx(record.clean[-1], abs=1e-6)
    else:
        assert record.reported == pytest.approx(record.clean, abs=1e-6)
        assert state["loss"] == record.reported[-1]


WAITING = ("item", "tolist", "__bool__", "__float__", "__int__", "nonzero")


@each_row
def test_step_never_waits_for_the_device(row, monkeypatch):
    class Watch(Callback):
        """
        Between these two hooks runs the batch step; asking a tensor for its value there would wait. R-Drop looks at the
        first batch for misuse, and at no other.
        """

        def on_train_batch_begin(self, trainer, batch, indices):
            for name in WAITING if trainer.global_forward_batches else ():
                monkeypatch.setattr(torch.Tensor, name, self.refuse)

        def on_train_batch_end(self, trainer):
            monkeypatch.undo()

        def refuse(self, *args):
            raise AssertionError("the step asked a tensor for its value")

    train(Classifier(), [Watch(), row.callback()], n_batches=6)


@each_row
def test_accumulation_counts_optimizer_steps(row):
    model, plain = Probe(), Probe()
    train(model, [row.callback(start=2, every=2)], accumulation_steps=2, n_batches=-1, n_epochs=2)
    train(plain, accumulation_steps=2, n_batches=-1, n_epochs=2)
    batches = plain.passes["forward"]
    assert batches == 12
    assert model.passes["forward"] == batches + 4 * (
        row.cost.forwards - 1
    )  # in steps 2 and 4 of 0 to 5, two batches each


@pytest.mark.parametrize("row", LIMITS, ids=str)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_in_the_limit_it_is_plain_training(row, accumulation):
    model, plain = Classifier(dropout=0.0).double(), Classifier(dropout=0.0).double()
    train(model, [row.callback()], accumulation_steps=accumulation, n_batches=12)
    train(plain, accumulation_steps=accumulation, n_batches=12)
    assert distance(model, plain) < 1e-12


@pytest.mark.parametrize("row", TWICE, ids=str)
def test_in_the_limit_a_clean_pass_and_an_adversarial_one_are_two_plain_ones(row):
    model, plain = Classifier(dropout=0.0).double(), Classifier(dropout=0.0).double()
    train(model, [row.callback()], lr=0.05)
    train(plain, lr=0.1)
    assert distance(model, plain) < 1e-12


def arguments_and_rubbish():
    """Every argument of every callback: what is no value at all, and, for numbers, what is out of range."""
    for name, method in METHODS.items():
        for argument, p in inspect.signature(method.callback).parameters.items():
            yield from ((name, argument, value) for value in (object(), [], ()))
            if isinstance(p.default, (int, float)):
                yield from ((name, argument, value) for value in (-1, float("nan"), float("inf"), "1"))


@pytest.mark.parametrize("name, argument, value", list(arguments_and_rubbish()))
def test_bad_arguments_are_refused_by_name(name, argument, value):
    method = METHODS[name]
    with pytest.raises(ValueError, match=f"Expected `{argument}` to be "):
        method.callback(**{argument: value})
    if argument not in ("start", "every", "log_every"):
        model = {} if method.method is fastnlp_adv.RDrop else {"model": Classifier()}
        with pytest.raises(ValueError, match=f"Expected `{argument}` to be "):
            method.method(**model, **{argument: value})
