"""What an attack on a text found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Attacked", "robust_accuracy"]


@dataclass(frozen=True)
class Attacked:
    """
    What an attack made of a text.

    :param original: the text.
    :param text: the attacked text; the original where the attack found nothing or had no need to.
    :param label: the label.
    :param prediction: what the model says of ``text``.
    :param was_right: whether it was right about the original.
    :param changes: the words that were changed, in the order of the text, each before and after.
    :param queries: how many times the model was run on a text of this search, gradient passes included.
    """

    original: str
    text: str
    label: int
    prediction: int
    was_right: bool
    changes: tuple[tuple[str, str], ...]
    queries: int

    @property
    def fooled(self) -> bool:
        """Whether a right prediction was turned into a wrong one."""
        return self.was_right and self.prediction != self.label

    @property
    def robust(self) -> bool:
        """Whether the prediction was right and still is."""
        return self.was_right and self.prediction == self.label


def robust_accuracy(results: Sequence[Attacked]) -> float:
    """
    The accuracy under attack.

    :param results: what an attack returned.
    :return: the share of examples that are still predicted right.
    :raises ValueError: if there are none.

    Example::

        >>> fooled = Attacked("good", "goood", 1, 0, True, (("good", "goood"),), 12)
        >>> robust = Attacked("bad", "bad", 0, 0, True, (), 12)
        >>> fooled.fooled, robust_accuracy([fooled, robust])
        (True, 0.5)
    """
    if not results:
        raise ValueError("Expected `results` to hold what an attack returned, but got none.")
    return sum(each.robust for each in results) / len(results)
