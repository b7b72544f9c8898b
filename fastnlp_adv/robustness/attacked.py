"""What an attack on a text found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Attacked", "RobustAccuracy", "robust_accuracy"]


@dataclass(frozen=True)
class Attacked:
    """
    What an attack made of a text.

    :param original: the text.
    :param text: the attacked text; the original where the attack found nothing or had no need to.
    :param label: the label.
    :param prediction: what the model says of ``text``.
    :param was_right: whether it was right about the original.
    :param changes: the edits, in the order of the text: what stood there and what stands there now.
    :param queries: how many times the model was run on a text of this search, gradient passes included.
    :param starts: where each change begins in the original.
    :param tried: how many edits were tried on the model; ``None`` if that is not known.
    """

    original: str
    text: str
    label: int
    prediction: int
    was_right: bool
    changes: tuple[tuple[str, str], ...]
    queries: int
    starts: tuple[int, ...] = ()
    tried: int | None = None

    @property
    def fooled(self) -> bool:
        """Whether a right prediction was turned into a wrong one."""
        return self.was_right and self.prediction != self.label

    @property
    def not_attacked(self) -> bool:
        """Whether the prediction was right and the attack could try nothing, which says nothing of the model."""
        return self.was_right and self.tried == 0

    @property
    def robust(self) -> bool:
        """Whether the prediction was right and still is, after edits were tried."""
        return self.was_right and self.prediction == self.label and not self.not_attacked


class RobustAccuracy(float):
    """
    An accuracy under attack: a ``float`` that knows how many texts it leaves out.

    :param value: the accuracy.
    :param not_attacked: how many texts the attack could try nothing on.
    :param attacked: how many texts the accuracy is taken over.
    """

    not_attacked: int
    attacked: int

    def __new__(cls, value: float, not_attacked: int = 0, attacked: int = 0) -> RobustAccuracy:
        self = super().__new__(cls, value)
        self.not_attacked, self.attacked = not_attacked, attacked
        return self

    def __getnewargs__(self) -> tuple[float, int, int]:  # type: ignore[override]
        return float(self), self.not_attacked, self.attacked

    def __repr__(self) -> str:
        left_out = f", not_attacked={self.not_attacked}" if self.not_attacked else ""
        return f"{type(self).__name__}({float(self)!r}{left_out}, attacked={self.attacked})"

    __str__ = float.__repr__  # tables and files get the number alone


def robust_accuracy(results: Sequence[Attacked]) -> RobustAccuracy:
    """
    Compute the accuracy under attack: of the texts that were wrong before or that edits were tried on, the share that
    is still predicted right.

    A text on which the attack could try nothing, such as one without a word that it may edit, is *not attacked*. It
    says nothing about the model, so it counts neither as right nor as wrong. How many there were is in
    ``not_attacked`` of what is returned, and shown where that is displayed: if they are many, the accuracy is one of a
    part of your texts, and another attack suits them better.

    :param results: what an attack returned.
    :return: the share, a ``float`` with ``not_attacked`` and ``attacked``, the numbers of texts left out and counted;
        not a number if none is left to count.
    :raises ValueError: if there are no results.

    Example::

        >>> fooled = Attacked("good", "goood", 1, 0, True, (("good", "goood"),), 12, tried=10)
        >>> robust = Attacked("bad", "bad", 0, 0, True, (), 12, tried=10)
        >>> untouched = Attacked("...", "...", 0, 0, True, (), 2, tried=0)
        >>> robust_accuracy([fooled, robust, untouched])
        RobustAccuracy(0.5, not_attacked=1, attacked=2)
        >>> f"{robust_accuracy([fooled, robust, untouched]):.1%}"
        '50.0%'
    """
    if not results:
        raise ValueError("Expected `results` to hold what an attack returned, but got none.")
    counted = [each for each in results if not each.not_attacked]
    share = sum(each.robust for each in counted) / len(counted) if counted else math.nan
    return RobustAccuracy(share, len(results) - len(counted), len(counted))
