"""What AWP and SAM, which move weights, share."""

from __future__ import annotations

import pytest
from references import batch, classifier, loss_on
from support import assert_untouched, snapshot

from fastnlp_adv import AWP, SAM
from fastnlp_adv.taps import WeightTap

LOSS = loss_on(*batch(4, 7))


@pytest.mark.parametrize("build", [lambda model: AWP(model, params="*"), SAM], ids=["AWP", "SAM"])
def test_an_interruption_between_two_weights_leaves_them_to_the_bit(build, monkeypatch):
    model, moved, move = classifier(), [], WeightTap.move
    before = snapshot(model)

    def interrupted(tap, by):
        move(tap, by)
        moved.append(tap)
        if len(moved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(WeightTap, "move", interrupted)
    with build(model) as attack, pytest.raises(KeyboardInterrupt):
        attack.step(lambda: LOSS(model))
    assert len(moved) == 2
    assert_untouched(model, before)
