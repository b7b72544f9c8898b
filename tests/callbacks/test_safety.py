"""Whatever fails, wherever in the step: the model is as it was before the step, and so is what gets saved."""

import copy
from contextlib import nullcontext

import pytest
import torch
from fastNLP import CheckpointCallback
from fastNLP.core.controllers.loops import TrainBatchLoop
from fastNLP.core.utils.exceptions import EarlyStopException
from rows import ROWS, Probe, each_method, train_shortly
from support import Classifier, assert_untouched, build, callback_of, samples, snapshot, weights

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback, RDropMixin
from fastnlp_adv.callbacks import METHODS as NAMES

COMBINATIONS = {
    "fgm+rdrop": (lambda: [FGMCallback(), RDropCallback(mode="two_pass")], {"forward": 4, "backward": 4}),
    "rdrop+pgd-weights": (
        lambda: [RDropCallback(), PGDCallback(emb_name="*e*", steps=2)],
        {"forward": 3, "backward": 3},
    ),
}
SINGLE = {name: (lambda row=ROWS[name]: [row.callback()], ROWS[name].passes) for name in NAMES}
METHODS = {**SINGLE, **COMBINATIONS}
ERRORS = (ValueError, KeyboardInterrupt)
#: in the first pass, which is clean or inner, and in the last; the errors take turns
EVERYWHERE = [
    pytest.param(make, passes, number, where, ERRORS[(number + len(where)) % 2], id=f"{name}-{where}{number}")
    for name, (make, passes) in METHODS.items()
    for where in ("forward", "backward")
    for number in sorted({0, passes[where] - 1})
]
FAILING_BATCH = 1


@pytest.mark.parametrize("make, passes, number, where, error", EVERYWHERE)
def test_failure_in_any_pass_leaves_the_model_as_before_the_step(make, passes, number, where, error, tmp_path):
    model, kept = Probe(), []
    model.rnn.bias_hh_l0.requires_grad_(False)
    hooks = snapshot(model)[1:]
    model.fail(where, FAILING_BATCH * passes[where] + number, error)
    # Before and after the methods' callbacks, since fastNLP calls the callbacks in the order of the list.
    savers = [CheckpointCallback(folder=tmp_path / place, on_exceptions=[error]) for place in ("first", "last")]
    keep = callback_of(on_train_batch_begin=lambda *_: kept.append(snapshot(model)))
    trainer = build(model, [savers[0], keep, *make(), savers[1]], data=samples(8))

    with nullcontext() if error is KeyboardInterrupt else pytest.raises(error, match="made to fail"):
        trainer.run()

    assert trainer.global_forward_batches == FAILING_BATCH
    assert_untouched(model, kept[-1])
    assert snapshot(model)[1:] == hooks
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn
    saved = [torch.load(file) for file in tmp_path.rglob("*.tar")]
    assert len(saved) == 2
    for state in saved:
        assert all(torch.equal(value, kept[-1][0][name]) for name, value in state.items())


def raising(hook, error):
    """A callback that raises in a hook."""

    def fail(*_):
        raise error

    return callback_of(**{hook: fail})


@each_method
@pytest.mark.parametrize(
    "hook", ["on_train_begin", "on_before_backward", "on_after_backward", "on_before_optimizers_step"]
)
@pytest.mark.parametrize("order", [1, -1], ids=["behind", "before"])
def test_failure_in_another_callback_leaves_the_model_as_it_was(row, hook, order):
    model = Probe()
    before = snapshot(model)
    trainer = build(model, [row.callback(), raising(hook, OSError("disk full"))][::order])
    with pytest.raises(OSError, match="disk full"):
        trainer.run()
    assert_untouched(model, before)
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn


@each_method
def test_early_stop_ends_the_methods_as_well(row):
    model = Probe()
    before = snapshot(model)[1:]
    trainer = train_shortly(model, [row.callback(), raising("on_train_batch_end", EarlyStopException("enough"))])
    assert trainer.global_forward_batches == 1
    assert snapshot(model)[1:] == before
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn


@each_method
def test_callback_works_again_after_a_training_and_a_failure(row):
    callback, broken = row.callback(), Probe()
    train_shortly(Classifier(), [callback])
    broken.fail("backward", 6 * row.passes["backward"] - 1, ValueError)  # in the last batch
    with pytest.raises(ValueError, match="made to fail"):
        train_shortly(broken, [callback])
    again, fresh = Classifier(), Classifier()
    ours, theirs = train_shortly(again, [callback]), train_shortly(fresh, [row.callback()])
    assert torch.equal(weights(again), weights(fresh))
    assert all(torch.equal(ours.state["adv"][name], value) for name, value in theirs.state["adv"].items())


@each_method
def test_whole_model_saved_in_training_is_a_plain_model(row, tmp_path):
    model, copies = Classifier(), []

    def save(trainer):
        torch.save(trainer.model, tmp_path / "model.pt")
        copies.append(copy.deepcopy(trainer.model))

    train_shortly(model, [row.callback(), callback_of(on_train_batch_end=save)], n_batches=2)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    for saved in (loaded, copies[-1]):
        assert_untouched(saved, snapshot(model))


def test_failure_in_the_forward_of_a_mixin_gives_it_its_own_settings_back():
    class Mixed(RDropMixin, Probe):
        rdrop_mode = "two_pass"

    model = Mixed()
    model.fail("forward", 1, ValueError)
    with pytest.raises(ValueError, match="made to fail"):
        train_shortly(model, [RDropCallback(mode="two_pass")])
    model.failure = None
    outputs = model.train_step(torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1]))
    assert "pred2" in outputs
