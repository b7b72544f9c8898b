"""A training that stops and resumes from fastNLP's checkpoint ends in the weights of one that never stopped."""

import pytest
import torch
from fastNLP import CheckpointCallback
from rows import ROWS, Row
from support import Classifier, build, distance, loader, train, weights
from torch import nn

from fastnlp_adv.callbacks import METHODS

SCHEDULED = {
    "FGM-start": Row("FGM", {"start": 7}),
    "FGM-fraction": Row("FGM", {"start": 0.6}),
    "FGM-every": Row("FGM", {"start": 1, "every": 4}),
    "RDrop-start": Row("RDrop", {"start": 7}),
}
ALL = {**{name: ROWS[name] for name in METHODS}, "SMART-bregman": ROWS["SMART-bregman"], **SCHEDULED}


class CountedDropout(nn.Module):
    """Dropout whose mask depends on how often it was called, which the checkpoint remembers."""

    def __init__(self, p=0.3):
        super().__init__()
        self.p = p
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(self.calls.item())) > self.p
        self.calls += 1
        return x * keep / (1 - self.p)


def make_model():
    model = Classifier(dropout=0.0)
    model.dropout = CountedDropout()
    return model


def run(model, callbacks, resume_from=None):
    """Two epochs of six shuffled batches, with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = {"train_dataloader": loader(shuffle=True), "n_batches": -1, "n_epochs": 2}
    trainer = build(model, callbacks, optimizers=optimizer, **data)
    trainer.run(resume_from=resume_from)
    return trainer


# Not after batch 6, the last of its epoch: to resume plain training there takes `compat.finished_epoch`, too.
STOPS = {"batch_4": {"every_n_batches": 4}, "epoch_1": {"every_n_epochs": 1}, "batch_8": {"every_n_batches": 8}}


@pytest.mark.parametrize("row", ALL.values(), ids=ALL.keys())
def test_resumed_training_ends_in_the_same_weights(row, tmp_path):
    whole = make_model()
    savers = [CheckpointCallback(tmp_path / stop, save_object="trainer", **when) for stop, when in STOPS.items()]
    run(whole, [row.callback(), *savers])
    assert distance(whole, make_model()) > 1e-3
    for stop in STOPS:
        resumed, (folder,) = make_model(), (tmp_path / stop).rglob(f"trainer-*{stop}")
        trainer = run(resumed, [row.callback()], resume_from=str(folder))
        assert trainer.global_forward_batches == 12
        assert torch.equal(weights(resumed), weights(whole))


# What a method remembers outlives a run: in a second run, and in a checkpoint that is saved after the first.


@pytest.mark.parametrize("name", ["ATTA", "TAVAT", "SMART-bregman", "FreeLB"])
def test_a_checkpoint_after_the_run_holds_what_it_remembers(name, tmp_path):
    row, whole, parts, resumed = ROWS[name], Classifier(), Classifier(), Classifier()
    train(whole, [row.callback()], n_epochs=2, n_batches=-1)
    trainer = train(parts, [row.callback()], n_epochs=1, n_batches=-1)
    trainer.save_checkpoint(tmp_path)
    rng = torch.get_rng_state()
    other = build(resumed, [row.callback()], n_epochs=2, n_batches=-1)
    torch.set_rng_state(rng)
    other.run(resume_from=str(tmp_path))
    assert distance(resumed, whole) < 1e-6
