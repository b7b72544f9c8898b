"""Where the search for an attacked text stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .attacked import Attacked
from .words import word_spans

__all__ = ["Change", "Search", "Tokens"]


class Change(NamedTuple):
    """
    An edit of a text.

    :param word: the number of the word; edits keep it, since each makes a word of a word.
    :param new: what stands there afterwards.
    """

    word: int
    new: str


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
    :param changes: the changed words by number, each before and after.
    :param plan: the numbers of the words to try next, for attacks that make up their mind once.
    """

    original: str
    label: int
    text: str
    loss: float
    prediction: int
    was_right: bool
    queries: int = 1
    changes: dict[int, tuple[str, str]] = field(default_factory=dict)
    plan: list[int] | None = None

    def consider(self, tried: list[tuple[Change, str, float, int]]) -> bool:
        """Take the worst that raises the loss: a wrong prediction first, then the higher loss. Whether there is one."""
        self.queries += len(tried)
        rising = [each for each in tried if each[2] > self.loss]
        if rising:
            before = self.text
            change, self.text, self.loss, self.prediction = max(rising, key=lambda t: (t[3] != self.label, t[2]))
            start, end = word_spans(before)[change.word]
            self.changes[change.word] = (before[start:end], change.new)
        return bool(rising)

    def result(self) -> Attacked:
        """What is reported."""
        changes = tuple(self.changes[word] for word in sorted(self.changes))
        return Attacked(
            self.original, self.text, self.label, self.prediction, self.was_right, changes, queries=self.queries
        )
