"""Whether a training under attack learns at all."""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Any

from fastNLP import logger
from torch import Tensor

__all__ = ["Learning"]

#: the batches that a loss is averaged over, in the beginning and lately
STRETCH = 25
#: optimizer steps before which it is too early to say
LEAST_STEPS = 100
#: how many batches from one reading to the next, besides those at the ends of epochs
READ_EVERY = 200
#: by how much the loss falls at least where something is learned; a new head alone comes to the share of each label
LEAST_FALL = 0.02


class Learning:
    """
    Warns, once, when the clean loss is no lower than in the beginning. Losses are kept as the tensors that they are and
    read once in a while, so no step waits for the device.

    :param method: the name of the method.
    :param size: the argument that says how far it perturbs.
    """

    def __init__(self, method: str, size: str):
        self.method = method
        self.size = size
        self.warned = False
        #: the clean losses of the first batches, and the last ones with the adversarial losses
        self.first: list[Tensor] = []
        self.last: deque[tuple[Tensor, Tensor | None]] = deque(maxlen=STRETCH)

    def note(self, trainer: Any) -> None:
        """Take the losses of a batch."""
        state = trainer.state.get("adv", {})
        if "loss" not in state:  # which is everyone's to write to
            return
        if len(self.first) < STRETCH:
            self.first.append(state["loss"])
        self.last.append((state["loss"], state.get("adv_loss")))
        if trainer.global_forward_batches % READ_EVERY == 0:
            self.check(trainer)

    def check(self, trainer: Any) -> None:
        """Read the losses, and warn if they have not fallen."""
        steps = trainer.global_forward_batches // trainer.accumulation_steps
        begun = len(self.last) == STRETCH and all(adversarial is not None for _, adversarial in self.last)
        if self.warned or steps < LEAST_STEPS or not begun:
            return
        before = fmean(map(float, self.first))
        clean, adversarial = (fmean(map(float, losses)) for losses in zip(*self.last))
        if clean > (1 - LEAST_FALL) * before and adversarial >= clean:
            self.warned = True
            logger.rank_zero_warning(
                f"Expected the clean loss to fall under {self.method}, but got {clean:.4g} over the last {STRETCH} "
                f"batches after {before:.4g} over the first {STRETCH}, and an adversarial loss of {adversarial:.4g}: "
                f"the perturbations may be too large to learn under. Give a smaller `{self.size}`, let it grow "
                "(`warmup=1.0` for the whole training), begin with plain steps (`start=0.1`), or lower the learning "
                "rate."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: what the training began with."""
        return {"first": [loss.cpu() for loss in self.first], "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.first, self.warned = list(state["first"]), state["warned"]
