"""Arguments are live: what is assigned to a callback holds from the next batch on."""

from __future__ import annotations

import pytest
import torch
from fastNLP import Callback
from support import Assign, Classifier, build, train, weights

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback, TAVATCallback, VATCallback


class Norms(Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer):
        self.seen.append(float(trainer.state["adv"]["perturbation_norm"]))


def test_an_assigned_epsilon_holds_from_the_next_batch_on():
    callback, norms = FGMCallback(1.0), Norms()
    train(Classifier(), [callback, norms, Assign(callback, 3, epsilon=0.25)], n_batches=6)
    assert norms.seen == pytest.approx([1.0] * 3 + [0.25] * 3, rel=1e-5)


class Early(Callback):
    """Assigns in the first hook of the training, when the methods have been built."""

    def __init__(self, callback, values):
        super().__init__()
        self.callback, self.values = callback, values

    def on_train_batch_begin(self, trainer, batch, indices):
        for name, value in self.values.items() if trainer.global_forward_batches == 0 else ():
            setattr(self.callback, name, value)


@pytest.mark.parametrize(
    "callback, values",
    [
        (FGMCallback, {"adv_weight": 0.5, "epsilon": 0.3}),
        (FGMCallback, {"replace": True, "inner_autocast": torch.bfloat16}),
        (PGDCallback, {"steps": 1, "norm": "linf"}),
        (RDropCallback, {"kl_weight": 0.1, "mode": "two_pass"}),
        (VATCallback, {"weight": 0.0, "dropout_mask": "same"}),
        (TAVATCallback, {"dropout_mask": "same", "alpha": 0.5}),
    ],
)
def test_assigned_arguments_train_as_those_of_the_constructor(callback, values):
    """From the first batch on, which is when an assignment before the training takes effect."""
    models = [Classifier(dropout=0.3), Classifier(dropout=0.3)]
    late = callback()
    trainer = build(models[0], [late, Early(late, values)])
    torch.manual_seed(1)
    trainer.run()
    train(models[1], [callback(**values)])
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_an_assigned_argument_is_checked_and_a_bad_one_changes_nothing():
    callback = PGDCallback()
    with pytest.raises(ValueError, match="Expected `epsilon` to be a finite, non-negative number, but got -1"):
        callback.epsilon = -1
    with pytest.raises(ValueError, match="Expected `inner_autocast`"):
        callback.inner_autocast, callback.steps = torch.bfloat16, 1
    assert (callback.epsilon, callback.steps) == (1.0, 3)
    with pytest.raises(ValueError, match="Expected `every`"):
        callback.every = 0
