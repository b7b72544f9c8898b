"""Habits of fastNLP's users: fractions of a training, exceptions, one callback in two Trainers, own methods."""

from __future__ import annotations

import pytest
import torch
from fastNLP import Callback
from fastNLP.core.utils.exceptions import EarlyStopException
from support import Classifier, build, samples, train, weights

from fastnlp_adv import ATTACallback, FGMCallback


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
