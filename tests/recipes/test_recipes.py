"""Every recipe runs as it stands and learns; those of other trainers do what fastNLP's Trainer does."""

from __future__ import annotations

import copy
import functools
import math
import runpy
from pathlib import Path

import pytest
import torch
import transformers
from fastNLP import TorchGradClipCallback
from references import add, on_moved_weights
from support import Classifier, bert_config, build, callback_of, collate, distance, samples, since_torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertForSequenceClassification

from fastnlp_adv import AWP, PGD, FGMCallback

FOLDER = Path(__file__).parents[2] / "examples/recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py"))
OTHER_TRAINERS = [name for name in RECIPES if name.startswith("in_")]
#: those whose requirements are here
NEEDS = {
    "in_a_plain_loop": since_torch(2, 3, "torch.amp.GradScaler"),
    "in_transformers_trainer": pytest.mark.skipif(
        tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 55), reason="needs transformers 4.55"
    ),
}
RUN = [pytest.param(name, marks=NEEDS.get(name, ())) for name in OTHER_TRAINERS]


@functools.cache
def run(name):
    return runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OTHER_TRAINERS])
def test_a_recipe_learns(name):
    found = run(name)  # which ends in an accuracy, or compares a loss before and after
    assert found["accuracy"] > 0.9 if "accuracy" in found else found["after"] < 0.8 * found["before"]


def test_lora_leaves_the_frozen_embedding_alone():
    found = run("lora")
    assert torch.equal(found["embedding"], found["frozen"])


@pytest.mark.parametrize("name", RUN)
def test_the_program_of_another_trainer_runs(name):
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config(0.0, vocab_size=64))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-3)  # with a tiny eps rounding errors become steps


def of_fastnlp(model, data, callbacks, **arguments):
    """Train a copy of the model in fastNLP's Trainer."""
    model = copy.deepcopy(model)
    arguments |= {"data": data, "batch_size": 8, "n_epochs": 1, "n_batches": -1}
    build(model, callbacks, optimizers=adam(model), **arguments).run()
    return model


@pytest.fixture
def data():
    ids = torch.randint(5, 60, (48, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_another_trainer_does_what_the_trainer_of_fastnlp_does(name, accumulation, data, monkeypatch):
    module, model = run(name), bert()
    start, more = copy.deepcopy(model), {"accumulation": accumulation}
    if "AdversarialTrainer" in module:
        if accumulation > 1:
            pytest.skip("its own test has accumulation")
        monkeypatch.setattr(module["AdversarialTrainer"], "_get_train_sampler", lambda *_: None)  # which shuffles
        more = {}
    if name == "in_a_plain_loop":
        more["max_norm"] = math.inf
    module["train"](model, adam(model), data, **more)
    reference = of_fastnlp(start, data, [FGMCallback(epsilon=0.5)], accumulation_steps=accumulation)
    plain = of_fastnlp(start, data, None, accumulation_steps=accumulation)
    assert distance(model, reference) < 1e-6
    assert distance(model, start) > 1e-2
    assert distance(model, plain) > 1e-3  # the attack counts


@since_torch(2, 3, "torch.amp.GradScaler")
def test_the_plain_loop_clips_and_averages(data):
    model, attack = bert(), [FGMCallback(epsilon=0.5)]
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    averaging = callback_of(on_after_optimizers_step=lambda trainer, _: expected.update_parameters(trainer.model))
    clipped = of_fastnlp(model, data, [*attack, TorchGradClipCallback(0.1), averaging])
    assert distance(clipped, of_fastnlp(model, data, attack)) > 1e-3
    averaged = run("in_a_plain_loop")["train"](model, adam(model), data, max_norm=0.1)
    assert distance(averaged.module, expected.module) < 1e-6 < distance(averaged.module, model)
    assert averaged.n_averaged == 6


def test_lightning_goes_on_from_a_checkpoint(data, tmp_path):
    """An attack that draws noise ends where one ends that was not interrupted."""
    lightning, module = pytest.importorskip("lightning"), run("in_lightning")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    loader = torch.utils.data.DataLoader(data, batch_size=8)

    def trained(epochs, name, **more):
        model = bert()
        learner = module["FGMModule"](model, adam(model))
        learner.fgm = PGD(epsilon=0.5, steps=2, random_init=True, warmup=9)
        trainer = lightning.Trainer(max_epochs=epochs, enable_checkpointing=False, **quiet)
        trainer.fit(learner, loader, **more)
        trainer.save_checkpoint(tmp_path / name)
        return model

    whole, half = trained(2, "whole.ckpt"), trained(1, "half.ckpt")
    resumed = trained(2, "resumed.ckpt", ckpt_path=tmp_path / "half.ckpt")
    assert distance(resumed, whole) < 1e-7 < distance(half, whole)


@pytest.mark.parametrize("drops", [True, False], ids=["zero_grad", "no zero_grad"])
def test_awp_of_competitions_is_what_the_page_says(drops):
    """The formula of the class that goes around there, with `adv_lr=0.3`, `adv_eps=0.1` and `start_epoch=1`."""
    batches = [collate(part) for part in zip(*[iter(samples())] * 4, strict=True)]
    ours, theirs = Classifier(dropout=0.0).double(), Classifier(dropout=0.0).double()
    start = copy.deepcopy(ours)

    def loss_of(model, batch):
        return model.train_step(batch["input_ids"], batch["labels"])["loss"]

    def moves(params, grads):
        moved = {n: 0.3 * grads[n] / grads[n].norm() * p.norm() for n, p in params.items() if "weight" in n}
        return {n: move.clamp(-0.1 * params[n].abs(), 0.1 * params[n].abs()) for n, move in moved.items()}

    for number, batch in enumerate(batches * 2):
        clean, moved = on_moved_weights(theirs, lambda model, batch=batch: loss_of(model, batch), moves)
        grads = clean if number < len(batches) else moved if drops else add(clean, moved)
        with torch.no_grad():
            for name, param in theirs.named_parameters():
                param -= 0.5 * grads[name]

    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    with AWP(ours, gamma=0.3, coordinate_bound=0.1, replace=drops, start=1 * len(batches)) as awp:
        for batch in batches * 2:
            awp.step(lambda batch=batch: loss_of(ours, batch))
            optimizer.step()
            optimizer.zero_grad()
    assert distance(ours, theirs) < 1e-10 < 1e-2 < distance(ours, start)
