"""What a method remembers outlives a run: in a second run, and in a checkpoint that is saved after the first."""

from __future__ import annotations

import pytest
import torch
from support import Classifier, build, distance, train

from fastnlp_adv import ATTACallback, FreeLBCallback, SMARTCallback, TAVATCallback

MEMORIES = {
    "ATTA": lambda: ATTACallback(),
    "TAVAT": lambda: TAVATCallback(),
    "SMART": lambda: SMARTCallback(bregman_weight=1.0),
    "FreeLB": lambda: FreeLBCallback(),
}


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
