"""The warning of a training in which nothing is learned: given once, where it is true, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from fastNLP import CheckpointCallback
from support import VOCAB, build, callback_of, loader
from torch import nn

from fastnlp_adv import AWPCallback, FGMCallback, RDropCallback

WARNING = "Expected the clean loss to fall"


class Bag(nn.Module):
    """The mean of word vectors, and a linear layer: learns which half of the vocabulary there is more of."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.word_embeddings, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.1)

    def train_step(self, input_ids, labels):
        pred = self.head(self.dropout(self.word_embeddings(input_ids)).mean(1))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


def texts(n):
    ids = torch.randint(0, VOCAB, (n, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": each, "labels": ((each < VOCAB // 2).sum() > 3).long()} for each in ids]


def train(callbacks, *, batches=240, per_epoch=60, resume_from=None, lr=0.02, **kwargs):
    """Returns the losses of the batches."""
    model, losses = Bag(), []
    note = callback_of(on_train_batch_end=lambda trainer: losses.append(float(trainer.state["adv"].get("loss", 0.0))))
    optimizer, data = torch.optim.Adam(model.parameters(), lr=lr), loader(texts(16 * per_epoch), 16)
    trainer = build(model, [*callbacks, note], optimizers=optimizer, train_dataloader=data, n_batches=batches, **kwargs)
    torch.manual_seed(1)
    trainer.run(resume_from=resume_from)
    return losses


def warnings(said):
    return [each for each in said.messages if WARNING in each]


def too_large(**how):
    return FGMCallback(epsilon=1000.0, granularity="sequence", **how or {"adv_weight": 100.0})


@pytest.mark.parametrize(
    "callbacks, name, size",
    [
        ([too_large()], "FGM", "epsilon"),
        ([too_large(replace=True)], "FGM", "epsilon"),
        ([too_large(), RDropCallback()], "FGM", "epsilon"),
        ([AWPCallback(gamma=30.0, adv_weight=100.0)], "AWP", "gamma"),
    ],
    ids=["fgm", "replace", "rdrop", "awp"],
)
def test_a_training_that_does_not_learn_is_warned_of_once(callbacks, name, size, said):
    losses = train(callbacks)
    assert sum(losses[-25:]) > sum(losses[:25])  # which is so
    (line,) = warnings(said)
    assert f"under {name}, but got " in line
    assert " over the last 25 batches after " in line
    assert f"Give a smaller `{size}`, let it grow as the loss falls (`warmup='auto'`) or over the training" in line
    assert "lower the learning rate" in line


@pytest.mark.parametrize(
    "callbacks",
    [
        [FGMCallback(epsilon=0.3)],
        [FGMCallback(epsilon=0.3, start=0.8, every=3)],
        [AWPCallback(gamma=0.01)],
        [FGMCallback(epsilon=0.3), RDropCallback()],
    ],
    ids=lambda callbacks: type(callbacks[0]).__name__,
)
def test_a_training_that_learns_is_silent(callbacks, said):
    losses = train(callbacks)
    assert sum(losses[-25:]) < 0.8 * sum(losses[:25])
    assert not warnings(said)


@pytest.mark.parametrize(
    "kwargs, half, stretch",
    [({"batches": 160, "per_epoch": 160, "accumulation_steps": 2}, 80, 25), ({"batches": 40, "per_epoch": 60}, 20, 10)],
    ids=str,
)
def test_short_trainings_are_looked_at_half_way(kwargs, half, stretch, said):
    losses = train([too_large()], **kwargs)
    (line,) = warnings(said)
    assert f"got {sum(losses[half - stretch : half]) / stretch:.4g} over the last {stretch} batches" in line
    assert f"after {sum(losses[:stretch]) / stretch:.4g} over the first {stretch}" in line


def test_what_was_learned_before_the_attack_began_counts(said):
    """The loss of a training that has converged falls no further, but it did."""
    losses = train([FGMCallback(epsilon=0.01, start=120)], batches=360, lr=0.3)
    assert sum(losses[-25:]) < 0.5 * sum(losses[:25])
    assert not warnings(said)


def saved(folder, batch):
    return str(next(folder.rglob(f"trainer-*batch_{batch}")))


def test_a_resumed_training_knows_what_it_began_with(tmp_path, said):
    saver = CheckpointCallback(folder=tmp_path, every_n_batches=150, save_object="trainer")
    train([FGMCallback(epsilon=0.01), saver], batches=450, lr=0.3)
    callback = FGMCallback(epsilon=0.01)
    first = train([callback], batches=450, lr=0.3, resume_from=saved(tmp_path, 150))[:25]
    assert float(callback.method.state_dict()["learning"]["first"][0]) == pytest.approx(0.7, abs=0.3)
    assert sum(first) / 25 < 0.3
    assert not warnings(said)


def test_a_resumed_training_is_not_warned_of_again(tmp_path, said):
    saver = CheckpointCallback(folder=tmp_path, every_n_batches=150, save_object="trainer")
    train([too_large(), saver], batches=150)
    train([too_large()], batches=420, resume_from=saved(tmp_path, 150))
    assert len(warnings(said)) == 1
