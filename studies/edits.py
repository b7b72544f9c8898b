"""
An attack for classifiers and taggers alike, without gradients: of some edits of a text, tried one by one, the worst is
kept, and then another on top of it. Edits keep the length of a text, so that each position keeps its tag.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fastnlp_adv.robustness.texts import Change, Search, is_spaceless
from fastnlp_adv.robustness.typos import character_typos

SLIPS = ("swap", "homophone")  # two neighbours swapped, and a character of the same pinyin
Losses = Callable[[Sequence[int], Sequence[str]], Sequence[float]]


def worst_texts(
    texts: Sequence[str],
    tags: Sequence[Sequence[str]] | None,
    losses: Losses,
    slip: str,
    edits: int,
    candidates: int,
) -> list[list[str | None]]:
    """
    Attack texts. The edits that are tried depend on the text and on nothing else, so all models meet the same first
    ones.

    :param texts: the texts.
    :param tags: the tag of each character, or ``None``. Characters are swapped only inside one entity or outside of
        all, so that the tags stay right.
    :param losses: the losses of the model, given the numbers of the texts and the edited texts.
    :param slip: one of :data:`SLIPS`.
    :param edits: how many edits a text may get.
    :param candidates: how many edits are tried for each.
    :return: the edited texts after 1, 2, ... edits; ``None`` for a text without candidates.
    """
    everyone = range(len(texts))
    searches = [Search(text, label=0, loss=loss) for text, loss in zip(texts, losses(everyone, texts), strict=True)]
    found: list[list[str | None]] = []
    attacked = set()
    for turn in range(edits):
        tried = [
            (i, change)
            for i, search in enumerate(searches)
            for change in _sample(search, None if tags is None else tags[i], slip, candidates, turn)
        ]
        told = losses([i for i, _ in tried], [searches[i].changed(change) for i, change in tried])
        worst: dict[int, Change] = {}
        for (i, change), loss in zip(tried, told, strict=True):
            attacked.add(i)
            if loss > searches[i].loss:
                searches[i].loss, worst[i] = loss, change
        for i, change in worst.items():
            searches[i].changes += (change,)
        found.append([searches[i].text if i in attacked else None for i in everyone])
    return found


def _sample(search: Search, tags: Sequence[str] | None, slip: str, candidates: int, turn: int) -> list[Change]:
    """Edits of one text that do not touch those that are made."""
    text = search.original
    places = [at for at, character in enumerate(text) if is_spaceless(character)]
    options = [change for at in places for change in character_typos(text, at, [slip])]
    fitting = [
        change
        for change in options
        if search.leaves(change.start, change.end)
        and (tags is None or change.end - change.start == 1 or _swappable(tags, change.start))
    ]
    chooser = random.Random(f"{slip} {turn} {text}")
    return chooser.sample(fitting, candidates) if len(fitting) > candidates else fitting


def _swappable(tags: Sequence[str], at: int) -> bool:
    """Tell whether a character and the next are in one entity or both in none."""
    return tags[at + 1].startswith("I-") or tags[at] == tags[at + 1] == "O"
