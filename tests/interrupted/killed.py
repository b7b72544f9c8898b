"""Trainings that are killed for good (SIGKILL) in the middle of a forward pass, each in a forked process of its own.

    python killed.py FOLDER '[["fgm", 7], ...]'

writes the checkpoints of each training to FOLDER/<method>-<forward>.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import quick  # noqa: F401
import support
import torch
import torch._dynamo  # an optimizer imports it, in each process anew if not here
from fastNLP import CheckpointCallback

from fastnlp_adv import (
    ATTACallback,
    AWPCallback,
    FGMCallback,
    FGSMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    SAMCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
    compat,
)

compat.repair()

CALLBACKS = {
    "fgm": lambda: FGMCallback(),
    "fgm start every": lambda: FGMCallback(start=4, every=2),
    "fgsm": lambda: FGSMCallback(),
    "pgd": lambda: PGDCallback(),
    "pgd weights": lambda: PGDCallback(emb_name="head"),  # written in place: a kill in between must not leave a trace
    "pgd random": lambda: PGDCallback(random_init=True),
    "freelb": lambda: FreeLBCallback(),
    "tavat": lambda: TAVATCallback(),
    "atta": lambda: ATTACallback(),
    "awp": lambda: AWPCallback(),
    "fgm fraction": lambda: FGMCallback(fraction=0.5),
    "sam": lambda: SAMCallback(),
    "rdrop": lambda: RDropCallback(mode="two_pass"),
    "vat": lambda: VATCallback(),
    "smart": lambda: SMARTCallback(noise=0.1, epsilon=0.1, alpha=0.1, bregman_weight=1.0),
    "r3f": lambda: R3FCallback(epsilon=0.1),
    "gradient penalty": lambda: GradientPenaltyCallback(),
}
N_BATCHES, SAVE_EVERY = 12, 3


class Mortal(support.Classifier):
    """Kills its process in the given forward pass."""

    def __init__(self, last_forward=None):
        super().__init__(dropout=0.0)
        self.forwards, self.last_forward = 0, last_forward

    def forward(self, input_ids):
        self.forwards += 1
        if self.forwards == self.last_forward:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids)


def train(method, model, folder, **run):
    """Twelve batches of shuffled data, with momentum and checkpoints, for which fastNLP changes the sampler."""
    checkpoints = CheckpointCallback(folder, every_n_batches=SAVE_EVERY, save_object="trainer")
    trainer = support.build(
        model,
        [CALLBACKS[method](), checkpoints],
        n_batches=N_BATCHES,
        train_dataloader=support.loader(shuffle=True),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    )
    torch.manual_seed(1)
    trainer.run(**run)
    return model


def main(folder, scenarios):
    warnings.simplefilter("ignore")
    for method, forward in scenarios:
        child = os.fork()
        if child == 0:
            train(method, Mortal(forward), Path(folder, f"{method}-{forward}"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (method, forward, status)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
