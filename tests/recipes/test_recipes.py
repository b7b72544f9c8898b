"""Every recipe runs as it stands and learns; those of other trainers do what fastNLP's Trainer does."""

from __future__ import annotations

import copy
import importlib.util
import runpy
from pathlib import Path

import pytest
import torch
from fastNLP import TorchDataLoader, Trainer
from support import distance
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGMCallback

FOLDER = Path(__file__).parents[2] / "examples/recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.py"))
OTHER_TRAINERS = [name for name in RECIPES if name.startswith("in_")]
#: recipes that compare a loss before and after; the others end in an accuracy
LOSSES = ["causal_lm", "lora", "regression", "seq2seq_t5"]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OTHER_TRAINERS])
def test_a_recipe_learns(name):
    found = runpy.run_path(str(FOLDER / f"{name}.py"))
    if name in LOSSES:
        assert found["after"] < 0.8 * found["before"]
    else:
        assert found["accuracy"] > 0.9


def test_lora_leaves_the_frozen_embedding_alone():
    found = runpy.run_path(str(FOLDER / "lora.py"))
    assert torch.equal(found["embedding"], found["frozen"])


@pytest.mark.parametrize("name", OTHER_TRAINERS)
def test_the_program_of_another_trainer_runs(name):
    load(name)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def load(name):
    if name == "in_transformers_trainer":
        pytest.importorskip("fastnlp_adv.trainers.transformers", exc_type=ImportError)  # transformers may be too old
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bert():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=64, **size, **dropout))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-3)  # with a tiny eps rounding errors become steps


def collate(samples):
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


@pytest.mark.parametrize("name", OTHER_TRAINERS)
def test_another_trainer_does_what_the_trainer_of_fastnlp_does(name, monkeypatch):
    ids = torch.randint(5, 60, (48, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    module, model = load(name), bert()
    start, reference, plain = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    if hasattr(module, "AdversarialTrainer"):  # which shuffles
        monkeypatch.setattr(module.AdversarialTrainer, "_get_train_sampler", lambda *_: None)
    module.train(model, adam(model), data)
    for other, callbacks in ((reference, [FGMCallback(epsilon=0.5)]), (plain, None)):
        loader = TorchDataLoader(data, batch_size=8, collate_fn=collate, prefetch_factor=None)
        Trainer(
            model=other,
            driver="torch",
            device="cpu",
            n_epochs=1,
            train_dataloader=loader,
            optimizers=adam(other),
            callbacks=callbacks,
            progress_bar=None,
        ).run()
    assert distance(model, reference) < 1e-6
    assert distance(model, start) > 1e-2
    assert distance(model, plain) > 1e-3  # the attack counts
