"""Compiled parts of a model, and models that are saved or pickled while a method watches them."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch._dynamo
from references import ATTACKS, IDS, LOSS, assert_same, step
from support import TORCH, Bert, Classifier, callback_of, collate, samples, train
from torch import nn

from fastnlp_adv import FGM, FGMCallback


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Mlp(Classifier):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(self.word_embeddings, nn.Linear(8, 8), nn.Tanh())

    def forward(self, input_ids):
        return self.head(self.net(input_ids).mean(1))


@pytest.mark.parametrize("start", [0, 3])
def test_a_compiled_part_can_be_attacked_later_and_saved_meanwhile(start, tmp_path):
    def save(trainer):
        if trainer.global_forward_batches == 4 and TORCH >= (2, 4):  # before, compiled modules cannot be pickled
            trainer.save_model(tmp_path, only_state_dict=False)

    ours = Mlp()
    ours._net, ours.net = ours.net, torch.compile(ours.net, backend="eager")
    ours(samples(2)[0]["input_ids"].unsqueeze(0))  # has run before the training
    trainer = train(ours, [FGMCallback(start=start), callback_of(on_train_batch_end=save)], n_batches=6)
    assert float(trainer.state["adv"]["perturbation_norm"]) == pytest.approx(1.0, rel=1e-5)


def test_a_model_that_was_pickled_in_training_has_hooks_that_do_nothing():
    model = Bert(dropout=0.0)
    fgm = FGM(model)
    copied = pickle.loads(pickle.dumps(model))
    fgm.close()
    batch = collate(samples(4))
    assert torch.equal(model.train_step(**batch)["pred"], copied.train_step(**batch)["pred"])


def plain_names(found):
    return {name.replace("_orig_mod.", ""): g for name, g in found.items()}


@ATTACKS
@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
def test_a_compiled_model(build, reference, granularity):
    plain = Mlp().double()
    expected = step(build(plain, granularity=granularity), plain, LOSS)
    model = torch.compile(Mlp().double(), backend="aot_eager")
    attack = build(model, granularity=granularity)
    for _ in range(2):
        assert_same(plain_names(step(attack, model, LOSS)), expected)
    attack.close()
    with torch.no_grad():
        assert torch.allclose(model(IDS), plain(IDS))
    assert_same(plain_names(step(build(model, granularity=granularity), model, LOSS)), expected)
