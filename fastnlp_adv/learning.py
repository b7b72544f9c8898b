"""Whether a training under attack learns at all."""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Any

from torch import Tensor

from .schedule import Progress

#: the batches that a loss is averaged over, in the beginning and lately; fewer in a short training
STRETCH = 25
#: optimizer steps before which it is too early to say, or half of a shorter training, but not below the second
LATEST, EARLIEST = 100, 10
#: how many batches from one reading to the next, besides the first and those at the ends of epochs
READ_EVERY = 200
#: the smallest fall of the loss that counts as learning; learning only the share of each label gives less
LEAST_FALL = 0.02
#: a model with a smaller loss has learned before
SMALL_LOSS = 0.1


class Learning:
    """
    Finds, once, that the clean loss is no lower than in the beginning. Losses are kept as tensors and read once in a
    while, so no step waits for the device.
    """

    def __init__(self, method: str, size: str):
        self.method = method
        self.size = size  # the name of the method's argument for it
        self.has_warned = False
        self.stretch = STRETCH
        #: the clean losses of the first batches, and the last ones with the adversarial losses
        self.first: list[Tensor] = []
        self.last: deque[tuple[Tensor, Tensor | None]] = deque(maxlen=STRETCH)

    def note(self, clean: Tensor, adversarial: Tensor | None, progress: Progress) -> str:
        """Take the losses of a batch, the last of ``progress``; return a warning where it is time to look."""
        first = self.first_check(progress)
        self.stretch = min(STRETCH, first // 2)
        if len(self.first) < STRETCH:
            self.first.append(clean)
        self.last.append((clean, adversarial))
        return self.check(progress) if progress.batches % READ_EVERY == 0 or progress.batches == first else ""

    @staticmethod
    def first_check(progress: Progress) -> int:
        """Return the number of batches before which it is too early to say."""
        total = progress.total_steps
        steps = LATEST if total is None else max(EARLIEST, min(LATEST, int(total) // 2))
        return steps * progress.accumulation_steps

    def check(self, progress: Progress) -> str:
        """Read the losses; return a warning if they have not fallen, once."""
        last = list(self.last)[-self.stretch :]
        if self.has_warned or progress.batches < self.first_check(progress) or len(last) < self.stretch:
            return ""
        adversarial = [loss for _, loss in last if loss is not None]
        if len(adversarial) < len(last):
            return ""
        before = fmean(map(float, self.first[: self.stretch]))
        clean, under_attack = fmean(float(loss) for loss, _ in last), fmean(map(float, adversarial))
        # early in a short training less can have fallen
        least = LEAST_FALL * min(1.0, progress.step / min(progress.total_steps or 1, 4 * LATEST))
        if before <= SMALL_LOSS or clean <= (1 - least) * before or under_attack < clean:
            return ""
        self.has_warned = True
        return (
            f"Expected the clean loss to fall under {self.method}, but got {clean:.4g} over the last {self.stretch} "
            f"batches after {before:.4g} over the first {self.stretch}, and an adversarial loss of {under_attack:.4g}: "
            f"the perturbations may be too large for the model to converge. Give a smaller `{self.size}`, let it grow "
            "as the loss falls (`warmup='auto'`) or over the training (`warmup=1.0`), or lower the learning rate."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the losses of the beginning."""
        return {"first": [loss.cpu() for loss in self.first], "warned": self.has_warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a :meth:`state_dict`."""
        self.first, self.has_warned = list(state["first"]), state["warned"]
