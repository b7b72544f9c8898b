"""Where the search for an attacked text stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .attacked import Attacked
from .words import Change, edited

__all__ = ["Search", "Tokens"]


class Tokens(NamedTuple):
    """
    A text as the model sees it.

    :param ids: the ids of its tokens, special tokens included, padding left out.
    :param spans: where each token stands in the text, white space around it left out; empty for what is added to it.
    :param gradients: the gradient at the lookup of each, of shape ``(tokens, features)``. It is that of the logarithm
        of the loss: of the same direction as that of the loss, but not too small to see where the model is confident.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    gradients: Tensor


@dataclass
class Search:
    """
    Where the search for one text stands.

    :param original: the text.
    :param label: the label.
    :param text: the worst text so far.
    :param loss: its loss.
    :param prediction: what the model says of it.
    :param was_right: whether the prediction was right in the beginning.
    :param queries: how many times the model was run.
    :param tried: how many edits have been tried.
    :param changes: the edits that ``text`` is made with.
    :param plan: what to try next, for attacks that make up their mind once.
    """

    original: str
    label: int
    text: str
    loss: float
    prediction: int
    was_right: bool
    queries: int = 1
    tried: int = 0
    changes: tuple[Change, ...] = ()
    plan: list[Any] | None = None

    def leaves(self, start: int, end: int) -> bool:
        """Tell whether a stretch of the original is as it was: no change reaches into it."""
        return all(end <= change.start or change.end <= start for change in self.changes)

    def origin(self, start: int, end: int) -> tuple[int, int] | None:
        """Find where a stretch of :attr:`text` stands in the original; ``None`` if a change reaches into it."""
        shift = 0
        for change in sorted(self.changes):
            if end <= change.start + shift:
                break
            if start < change.start + shift + len(change.new):
                return None
            shift += len(change.new) - (change.end - change.start)
        return start - shift, end - shift

    def changed(self, change: Change) -> str:
        """Return the text with all changes so far and this one."""
        return edited(self.original, [*self.changes, change])

    def consider(self, tried: list[tuple[Change, str, float, int]]) -> bool:
        """Take the worst that raises the loss: a wrong prediction first, then the higher loss. Whether there is one."""
        self.queries += len(tried)
        self.tried += len(tried)
        rising = [each for each in tried if each[2] > self.loss]
        if rising:
            change, self.text, self.loss, self.prediction = max(rising, key=lambda t: (t[3] != self.label, t[2]))
            self.changes = (*self.changes, change)
        return bool(rising)

    def result(self) -> Attacked:
        """What is reported."""
        changes = sorted(self.changes)
        return Attacked(
            self.original,
            self.text,
            self.label,
            self.prediction,
            self.was_right,
            tuple((self.original[start:end], new) for start, end, new in changes),
            queries=self.queries,
            starts=tuple(change.start for change in changes),
            tried=self.tried,
        )
