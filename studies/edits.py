"""
An attack for classifiers and taggers alike, without gradients: of some edits of a text, tried one by one, the worst is
kept, and then another on top of it. Edits keep the length of a text, so that each position keeps its tag.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fastnlp_adv.robustness.texts import Change, edited, is_spaceless
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
    changes: list[list[Change]] = [[] for _ in texts]
    highest = list(losses(everyone, texts))
    found: list[list[str | None]] = []
    attacked = set()
    for turn in range(edits):
        tried = [
            (i, change)
            for i in everyone
            for change in _sample(texts[i], None if tags is None else tags[i], changes[i], slip, candidates, turn)
        ]
        told = losses([i for i, _ in tried], [edited(texts[i], [*changes[i], change]) for i, change in tried])
        worst: dict[int, Change] = {}
        for (i, change), loss in zip(tried, told, strict=True):
            attacked.add(i)
            if loss > highest[i]:
                highest[i], worst[i] = loss, change
        for i, change in worst.items():
            changes[i].append(change)
        found.append([edited(texts[i], changes[i]) if i in attacked else None for i in everyone])
    return found


def _sample(
    text: str, tags: Sequence[str] | None, made: Sequence[Change], slip: str, candidates: int, turn: int
) -> list[Change]:
    """Edits of one text that do not touch those that are made."""
    places = [at for at, character in enumerate(text) if is_spaceless(character)]
    options = [change for at in places for change in character_typos(text, at, [slip])]
    fitting = [
        change
        for change in options
        if all(change.end <= each.start or each.end <= change.start for each in made)
        and (tags is None or change.end - change.start == 1 or _swappable(tags, change.start))
    ]
    chooser = random.Random(f"{slip} {turn} {text}")
    return chooser.sample(fitting, candidates) if len(fitting) > candidates else fitting


def _swappable(tags: Sequence[str], at: int) -> bool:
    """Tell whether a character and the next are in one entity or both in none."""
    return tags[at + 1].startswith("I-") or tags[at] == tags[at + 1] == "O"
