"""What a method remembers outlives a run: in a second run, and in a checkpoint that is saved after the first."""

from __future__ import annotations

import pytest
import torch
from support import Classifier, build, distance, train, weights

from fastnlp_adv import ATTACallback, FreeLBCallback, SMARTCallback, TAVATCallback

MEMORIES = {
    "ATTA": lambda: ATTACallback(),
    "TAVAT": lambda: TAVATCallback(),
    "SMART": lambda: SMARTCallback(bregman_weight=1.0),
    "FreeLB": lambda: FreeLBCallback(),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_a_second_run_goes_on_with_what_the_first_remembers(name):
    whole, parts = Classifier(), Classifier()
    train(whole, [MEMORIES[name]()], n_epochs=2, n_batches=-1)
    trainer = build(parts, [MEMORIES[name]()], n_epochs=1, n_batches=-1)
    torch.manual_seed(1)
    trainer.run()
    trainer.n_epochs, trainer.n_batches = 2, -1
    trainer.run()
    assert torch.equal(weights(whole), weights(parts))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_checkpoint_after_the_run_holds_what_it_remembers(name, tmp_path):
    whole, parts, resumed = Classifier(), Classifier(), Classifier()
    train(whole, [MEMORIES[name]()], n_epochs=2, n_batches=-1)
    trainer = train(parts, [MEMORIES[name]()], n_epochs=1, n_batches=-1)
    trainer.save_checkpoint(tmp_path)
    rng = torch.get_rng_state()
    other = build(resumed, [MEMORIES[name]()], n_epochs=2, n_batches=-1)
    torch.set_rng_state(rng)
    other.run(resume_from=str(tmp_path))
    assert distance(resumed, whole) < 1e-6


def test_another_trainer_begins_with_an_empty_memory():
    callback = ATTACallback()
    train(Classifier(), [callback], n_batches=6)
    again = train(Classifier(), [callback], n_batches=6)
    alone = train(Classifier(), [ATTACallback()], n_batches=6)
    assert torch.equal(weights(again.driver.model), weights(alone.driver.model))
