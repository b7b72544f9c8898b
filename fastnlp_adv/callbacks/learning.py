"""Whether a training under attack learns at all."""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Any

from fastNLP import logger
from torch import Tensor

__all__ = ["Learning"]

#: the batches that a loss is averaged over, in the beginning and lately; fewer in a short training
STRETCH = 25
#: optimizer steps before which it is too early to say, or a quarter of a shorter training, but not below the second
LATEST, EARLIEST = 100, 10
#: how many batches from one reading to the next, besides the first and those at the ends of epochs
READ_EVERY = 200
#: a model with a smaller loss has learned before
SMALL_LOSS = 0.1
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
        self.stretch = STRETCH
        #: the clean losses of the first batches, and the last ones with the adversarial losses
        self.first: list[Tensor] = []
        self.last: deque[tuple[Tensor, Tensor | None]] = deque(maxlen=STRETCH)

    def note(self, trainer: Any) -> None:
        """Take the losses of a batch."""
        state = trainer.state.get("adv", {})
        if "loss" not in state:  # which is everyone's to write to
            return
        first = self.first_check(trainer)
        self.stretch = min(STRETCH, first // 2)
        if len(self.first) < STRETCH:
            self.first.append(state["loss"])
        self.last.append((state["loss"], state.get("adv_loss")))
        if trainer.global_forward_batches % READ_EVERY == 0 or trainer.global_forward_batches == first:
            self.check(trainer)

    @staticmethod
    def first_check(trainer: Any) -> int:
        """Return the number of batches before which it is too early to say."""
        steps = trainer.n_batches // trainer.accumulation_steps
        return max(EARLIEST, min(LATEST, steps // 4)) * trainer.accumulation_steps

    def check(self, trainer: Any) -> None:
        """Read the losses, and warn if they have not fallen."""
        last = list(self.last)[-self.stretch :]
        begun = len(last) == self.stretch and all(adversarial is not None for _, adversarial in last)
        if self.warned or trainer.global_forward_batches < self.first_check(trainer) or not begun:
            return
        before = fmean(map(float, self.first[: self.stretch]))
        clean, adversarial = (fmean(map(float, losses)) for losses in zip(*last))
        if before > SMALL_LOSS and clean > (1 - LEAST_FALL) * before and adversarial >= clean:
            self.warned = True
            logger.rank_zero_warning(
                f"Expected the clean loss to fall under {self.method}, but got {clean:.4g} over the last "
                f"{self.stretch} batches after {before:.4g} over the first {self.stretch}, and an adversarial loss of "
                f"{adversarial:.4g}: the perturbations may be too large to learn under. Give a smaller `{self.size}`, "
                "let it grow (`warmup=1.0` for the whole training), begin with plain steps (`start=0.1`), or lower the "
                "learning rate."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: what the training began with."""
        return {"first": [loss.cpu() for loss in self.first], "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.first, self.warned = list(state["first"]), state["warned"]
