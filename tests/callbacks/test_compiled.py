"""Compiled parts of a model, and models that are saved or pickled while a method watches them."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch._dynamo
from fastNLP import Callback
from references import ATTACKS, assert_same, batch, loss_on, step
from support import CLASSES, TORCH, VOCAB, Bert, Classifier, collate, samples, train
from torch import nn

from fastnlp_adv import FGM, FGMCallback


class Compiled(Classifier):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._net = nn.Sequential(self.word_embeddings, nn.Linear(8, 8), nn.Tanh())
        self.net = torch.compile(self._net, backend="eager")

    def forward(self, input_ids):
        return self.head(self.net(input_ids).mean(1))


class Saves(Callback):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, trainer):
        if trainer.global_forward_batches == 4:
            trainer.save_model(self.folder, only_state_dict=False)


@pytest.mark.parametrize("start", [0, 3])
def test_a_compiled_part_can_be_attacked_later_and_saved_meanwhile(start, tmp_path):
    torch.compiler.reset()
    ours = Compiled()
    ours(samples(2)[0]["input_ids"].unsqueeze(0))  # has run before the training
    saves = [Saves(tmp_path)] if TORCH >= (2, 4) else []  # before, what torch.compile returns cannot be pickled
    trainer = train(ours, [FGMCallback(start=start), *saves], n_batches=6)
    assert float(trainer.state["adv"]["perturbation_norm"]) == pytest.approx(1.0, rel=1e-5)


def test_a_model_that_was_pickled_in_training_has_hooks_that_do_nothing():
    model = Bert(dropout=0.0)
    fgm = FGM(model)
    copied = pickle.loads(pickle.dumps(model))
    fgm.close()
    batch = collate(samples(4))
    assert torch.equal(model.train_step(**batch)["pred"], copied.train_step(**batch)["pred"])


# Compiled models: the perturbation reaches their graphs, or the user hears of it.


IDS, LABELS = batch(4, 7)
LOSS = loss_on(IDS, LABELS)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(VOCAB, 6)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)
        self.double()

    def forward(self, ids):
        return self.head(torch.tanh(self.layer(self.emb(ids))).mean(1))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain_names(found):
    return {name.replace("_orig_mod.", ""): g for name, g in found.items()}


@ATTACKS
@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
def test_a_compiled_model(build, reference, granularity):
    plain = Mlp()
    expected = step(build(plain, granularity=granularity), plain, LOSS)
    model = torch.compile(Mlp(), backend="aot_eager")
    attack = build(model, granularity=granularity)
    for _ in range(2):
        assert_same(plain_names(step(attack, model, LOSS)), expected)
    attack.close()
    with torch.no_grad():
        assert torch.allclose(model(IDS), plain(IDS))
    assert_same(plain_names(step(build(model, granularity=granularity), model, LOSS)), expected)
