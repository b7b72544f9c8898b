"""What AWP and SAM, which move weights, share."""

from __future__ import annotations

import pytest
import torch
from references import batch, classifier, loss_on
from support import assert_untouched, snapshot
from torch.utils._python_dispatch import TorchDispatchMode

from fastnlp_adv import AWP, SAM

LOSS = loss_on(*batch(4, 7))
BOTH = pytest.mark.parametrize(
    "build",
    [lambda model: AWP(model, params="*"), SAM, lambda model: SAM(model, adaptive=True)],
    ids=["AWP", "SAM", "ASAM"],
)


class InterruptedAt(TorchDispatchMode):
    """Ctrl-C behind the `number`th operation from the first pass on, until the second."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.passes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if self.passes == 1:
            self.number -= 1
            if self.number == 0:
                raise KeyboardInterrupt
        return found


@BOTH
def test_an_interruption_anywhere_between_the_passes_leaves_weights_to_the_bit(build):
    model = classifier()
    before = snapshot(model)
    number = interrupted = 0
    with build(model) as attack:
        while number == interrupted:
            number += 1
            mode = InterruptedAt(number)

            def closure(mode=mode):
                mode.passes += 1
                return LOSS(model)

            try:
                with mode:
                    attack.step(closure)
            except KeyboardInterrupt:
                interrupted += 1
            assert all(torch.equal(p, before[0][name]) for name, p in model.named_parameters())
            model.zero_grad()
    assert number > 50
    assert_untouched(model, before)
