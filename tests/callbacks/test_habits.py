"""Habits of fastNLP's users: fractions of a training, exceptions, one callback in two Trainers, own methods."""

from __future__ import annotations

import pytest
import torch
from fastNLP import Callback
from fastNLP.core.utils.exceptions import EarlyStopException
from support import Classifier, build, samples, train, weights

from fastnlp_adv import FGM, ATTACallback, FGMCallback
from fastnlp_adv.attacks import Pass
from fastnlp_adv.callbacks import AttackCallback


@pytest.mark.parametrize("start, first", [(0.07, 7), (0.5, 50), (0.29, 29), (0.001, 1), (7.5, 8)])
def test_a_fraction_begins_where_it_says(start, first):
    """Training ends with the batch in which the method sets in."""
    acted = []

    class Look(Callback):
        def on_train_batch_end(self, trainer):
            acted.append("adv_loss" in trainer.state["adv"])
            if acted[-1]:
                raise EarlyStopException("seen")

    trainer = train(Classifier(), [FGMCallback(start=start), Look()], data=samples(400), n_batches=-1, n_epochs=1)
    assert trainer.n_batches == 100
    assert acted == [False] * first + [True]


def test_a_start_beyond_the_end_warns_once(said):
    train(Classifier(), [FGMCallback(start=1000)], n_batches=6)
    assert sum("will never act" in each.getMessage() for each in said.records) == 1


class Raises(Callback):
    def __init__(self, hook):
        super().__init__()
        self.armed = True

    def on_train_end(self, trainer):
        if self.armed:
            raise ArithmeticError("mine")


@pytest.mark.parametrize("first", [True, False])
def test_another_callbacks_exception_at_the_end_leaves_no_step_behind(first):
    bad, model = Raises("end"), Classifier()
    trainer = build(model, [bad, FGMCallback()] if first else [FGMCallback(), bad], n_epochs=1, n_batches=-1)
    step = trainer.train_batch_loop.batch_step_fn
    with pytest.raises(ArithmeticError):
        trainer.run()
    assert trainer.train_batch_loop.batch_step_fn is step
    assert not model.word_embeddings._forward_hooks
    bad.armed, trainer.n_epochs = False, 2
    trainer.run()
    assert trainer.train_batch_loop.batch_step_fn is step


def test_one_callback_in_two_running_trainers_is_refused_and_the_outer_one_goes_on():
    callback, messages = FGMCallback(), []

    class Nested(Callback):
        def on_train_batch_end(self, trainer):
            if trainer.global_forward_batches == 2:
                inner = build(Classifier(), [callback], n_epochs=1)
                with pytest.raises(ValueError) as caught:
                    inner.run()
                messages.append(str(caught.value))

    ours, theirs = Classifier(), Classifier()
    train(ours, [callback, Nested()])
    train(theirs, [FGMCallback()])
    assert "one Trainer at a time" in messages[0] and "its own callback" in messages[0]
    assert torch.equal(weights(ours), weights(theirs))


def test_atta_refuses_overfit_batches_which_come_without_indices():
    with pytest.raises(ValueError, match=r"without `overfit_batches`.*but got 2. Give the dataloader"):
        build(Classifier(), [ATTACallback()], overfit_batches=2)


class Halved(FGM):
    """A method of a user: plain training on half the loss."""

    def passes(self):
        yield Pass(weight=0.5, last=True)


class HalvedCallback(AttackCallback):
    method_class = Halved


class Inheriting(FGMCallback):
    method_class = Halved


@pytest.mark.parametrize("callback", [HalvedCallback, Inheriting])
def test_a_method_of_ones_own_needs_one_short_class(callback):
    ours, theirs = Classifier(), Classifier()
    made = callback(0.5)
    train(ours, [made], lr=0.2)
    train(theirs, lr=0.1)
    assert torch.equal(weights(ours), weights(theirs))
    assert type(made.method) is Halved and (made.epsilon, made.names()) == (0.5, FGM.names())
    with pytest.raises(TypeError, match=f"argument of {callback.__name__}, but got `epsilom`. Did you mean `epsilon`"):
        callback(epsilom=0.5)
