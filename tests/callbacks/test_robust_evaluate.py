"""Robust evaluation in Trainers: fastNLP's metrics, monitors, saving and progress bars, and a training left alone."""

from __future__ import annotations

import json

import pytest
import torch
from fastNLP import Accuracy
from support import Classifier, assert_untouched, build, callback_of, loader, samples, snapshot, train, weights
from torch import nn

from fastnlp_adv import FGMCallback
from fastnlp_adv.callbacks.robust_evaluate import RobustEvaluateCallback
from fastnlp_adv.robustness import robust_evaluate

SETTINGS = {"epsilon": 0.6, "steps": 3, "restarts": 2}
DATA = samples(8, seed=5)


def callback(**kwargs):
    return RobustEvaluateCallback(**{"dataloaders": loader(DATA), "metrics": {"acc": Accuracy()}, **SETTINGS, **kwargs})


def kept(folder):
    """The file and the results of the only saved evaluation."""
    (file,) = folder.rglob("fastnlp_evaluate_results.json")
    return file, json.loads(file.read_text())


def evaluated(model):
    """The results of `robust_evaluate`."""
    return robust_evaluate(
        model, loader(DATA), epsilons=(0.6,), steps=3, restarts=2, step=lambda batch: model(batch["input_ids"])
    )


def test_results_are_those_of_robust_evaluate(tmp_path):
    model = Classifier(0.2)
    saving = callback(topk=-1, topk_monitor="accuracy#robust", folder=str(tmp_path))
    train(model, [saving], n_epochs=1, n_batches=-1)
    (_, found), expected = kept(tmp_path), evaluated(model)
    assert found["loss#robust"] == pytest.approx(expected[0.6]["loss"], rel=1e-5)
    assert found["loss#robust"] > expected[0.0]["loss"]
    assert found["accuracy#robust"] == expected[0.6]["accuracy"]
    assert found["acc#acc"] == pytest.approx(found["accuracy#robust"], abs=1e-6)


@pytest.mark.parametrize("attack", [list, lambda: [FGMCallback()]], ids=["plain", "fgm"])
def test_training_is_the_same_with_and_without(attack):
    ours, theirs = Classifier(0.0), Classifier(0.0)
    train(ours, [callback(evaluate_every=2), *attack()])
    train(theirs, attack())
    assert torch.equal(weights(ours), weights(theirs))


def test_the_best_model_is_saved_and_can_be_loaded(tmp_path):
    def worse(trainer):
        if trainer.cur_epoch_idx == 1:
            nn.init.zeros_(trainer.model.head.weight)

    model = Classifier(0.0)
    best = callback(topk=1, topk_monitor="loss#robust", topk_larger_better=False, folder=str(tmp_path))
    callbacks = [callback_of(on_train_epoch_begin=worse), best]
    trainer = train(model, callbacks, data=DATA, lr=0.5, n_epochs=3, n_batches=-1)
    file, found = kept(tmp_path)
    trainer.load_model(str(file.parent))
    assert evaluated(model)[0.6]["loss"] == pytest.approx(found["loss#robust"], rel=1e-5)
    assert f"loss#robust_{found['loss#robust']}" in file.parent.name


class Stop(BaseException):
    """As KeyboardInterrupt, which fastNLP takes for the end of a training."""


class Failing(Classifier):
    """Stops in a forward pass."""

    def __init__(self, at):
        super().__init__(0.1)
        self.at, self.forwards = at, 0

    def forward(self, input_ids):
        self.forwards += not self.training
        if self.forwards == self.at:
            raise Stop
        return super().forward(input_ids)


@pytest.mark.parametrize("at", [1, 6, 20])
def test_after_a_failure_the_model_is_as_before(at):
    model, states = Failing(at), []
    watch = callback_of(on_train_epoch_end=lambda trainer: states.append(snapshot(model)))
    trainer = build(model, [watch, callback(num_eval_sanity_batch=0)], n_epochs=1, n_batches=-1)
    with pytest.raises(Stop):
        trainer.run()
    assert_untouched(model, *states)
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1.0}, "`epsilons` to be a finite"),
        ({"steps": 0}, "`steps` to be an integer"),
        ({"dataloaders": None}, "to have data.* Give one of them"),
        ({"labels": "target"}, "`labels` to name a field.* Name the field that holds them"),
        ({"emb_name": "nothing"}, "`emb_name` to be part.* Give part of one of these names"),
    ],
)
def test_refuses_when_the_trainer_is_built(arguments, message):
    model = Classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        build(model, [callback(**arguments)])
    assert_untouched(model, before)


def test_labels_under_no_known_name_are_asked_for():
    data = [{"input_ids": torch.ones(2, 3, dtype=torch.long), "gold": torch.tensor([0, 1])}]
    with pytest.raises(ValueError, match=r"one of \('labels', 'label', 'targets', 'target'\), but got None with"):
        robust_evaluate(Classifier(), data, step=lambda batch: Classifier()(batch["input_ids"]))
