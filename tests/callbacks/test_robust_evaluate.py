"""Robust evaluation in Trainers: fastNLP's metrics, monitors, saving and progress bars, and a training left alone."""

from __future__ import annotations

import json

import pytest
import torch
from fastNLP import Accuracy, Callback
from support import Classifier, assert_untouched, build, loader, samples, snapshot, train, weights
from torch import nn

from fastnlp_adv import FGMCallback
from fastnlp_adv.callbacks.robust_evaluate import RobustEvaluateCallback
from fastnlp_adv.robustness import robust_evaluate

SETTINGS = {"epsilon": 0.6, "steps": 3, "restarts": 2}
DATA = samples(8, seed=5)
RESULTS = "fastnlp_evaluate_results.json"


def callback(**kwargs):
    return RobustEvaluateCallback(**{"dataloaders": loader(DATA), "metrics": {"acc": Accuracy()}, **SETTINGS, **kwargs})


def saving(folder, **kwargs):
    """A callback that saves the model of every evaluation with its results."""
    return callback(topk=-1, topk_monitor="accuracy#robust", folder=str(folder), **kwargs)


def saved(folder):
    """The results of all evaluations, by the number of batches."""
    found = {int(f.parent.name.split("batch_")[1].split("-")[0]): json.loads(f.read_text()) for f in files(folder)}
    return [found[batch] for batch in sorted(found)]


def files(folder):
    return list(folder.rglob(RESULTS))


def test_results_are_those_of_robust_evaluate(tmp_path):
    model = Classifier(0.2)
    train(model, [saving(tmp_path)], n_epochs=1, n_batches=-1)
    (found,) = saved(tmp_path)
    expected = robust_evaluate(
        model, loader(DATA), epsilons=(0.6,), steps=3, restarts=2, step=lambda batch: model(batch["input_ids"])
    )
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


class Worse(Callback):
    """Makes the model useless after the first epoch."""

    def on_train_epoch_begin(self, trainer):
        if trainer.cur_epoch_idx == 1:
            nn.init.zeros_(trainer.model.head.weight)


def test_the_best_model_is_saved_and_can_be_loaded(tmp_path):
    model = Classifier(0.0)
    kept = callback(topk=1, topk_monitor="loss#robust", topk_larger_better=False, folder=str(tmp_path))
    data = samples(8, seed=5)
    trainer = train(model, [Worse(), kept], data=data, lr=0.5, n_epochs=3, n_batches=-1)
    (file,) = files(tmp_path)
    result = json.loads(file.read_text())["loss#robust"]
    trainer.load_model(str(file.parent))
    again = robust_evaluate(
        model, loader(DATA), epsilons=(0.6,), steps=3, restarts=2, step=lambda batch: model(batch["input_ids"])
    )
    assert again[0.6]["loss"] == pytest.approx(result, rel=1e-5)
    assert f"loss#robust_{result}" in file.parent.name


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
    model, states = Failing(at), {}

    class Watch(Callback):
        def on_train_epoch_end(self, trainer):
            states["before"] = snapshot(model)

    trainer = build(model, [Watch(), callback(num_eval_sanity_batch=0)], n_epochs=1, n_batches=-1)
    with pytest.raises(Stop):
        trainer.run()
    assert_untouched(model, states["before"])
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
