"""Slips of the finger: what people mistype in words of letters, and in scripts without spaces."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .homophones import homophones
from .words import Change, is_spaceless

__all__ = ["SHORTEST", "SLIPS", "character_typos", "typos_of"]

#: swapped neighbours, left out, typed twice, the key beside it, and a character that sounds the same
SLIPS = ("swap", "drop", "double", "key", "homophone")
SHORTEST = 4  # letters: with fewer there is nothing to swap between the first and the last
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Each row of a keyboard is half a key to the right of the one above."""
    near: dict[str, str] = {}
    for number, row in enumerate(_ROWS):
        for at, letter in enumerate(row):
            beside = [(number, at - 1), (number, at + 1), (number - 1, at), (number - 1, at + 1)]
            beside += [(number + 1, at - 1), (number + 1, at)]
            near[letter] = "".join(_ROWS[r][c] for r, c in beside if 0 <= r < len(_ROWS) and 0 <= c < len(_ROWS[r]))
    return near


NEIGHBOURS = _neighbours()


def typos_of(word: str, slips: Collection[str] = SLIPS) -> list[str]:
    """
    List all that one slip of the finger makes of a word of letters: two neighbouring letters swapped, one left out, one
    typed twice, or the key beside it on a QWERTY keyboard in its place. The first and the last letter stay.

    :param word: the word.
    :param slips: of which kind, see :data:`SLIPS`.
    :return: the misspelt words, each once, without the word itself; none for words of less than 4 letters.

    Example::

        >>> [typo for typo in typos_of("film") if len(typo) != 4]
        ['flm', 'fim', 'fiilm', 'fillm']
        >>> "flim" in typos_of("film"), "fulm" in typos_of("film")
        (True, True)
        >>> typos_of("film", ["swap"])
        ['flim']
    """
    if len(word) < SHORTEST:
        return []
    return [typo for typo in dict.fromkeys(_in_word(word, slips)) if typo != word]


def _in_word(word: str, slips: Collection[str]) -> Iterator[str]:
    inner = range(1, len(word) - 1)
    for i in inner[:-1] if "swap" in slips else ():
        yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    for i in inner if "drop" in slips else ():
        yield word[:i] + word[i + 1 :]
    for i in inner if "double" in slips else ():
        yield word[: i + 1] + word[i:]
    for i in inner if "key" in slips else ():
        for key in NEIGHBOURS.get(word[i].lower(), ""):
            yield word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :]


def character_typos(text: str, at: int, slips: Collection[str] = SLIPS) -> list[Change]:
    """
    List all that one slip makes of a character of a script without spaces: swapped with the next, left out, typed
    twice, or one that sounds the same in its place (:func:`~fastnlp_adv.robustness.homophones.homophones`). It is
    swapped only with a character of such a script, and left out only beside one.

    :param text: the text.
    :param at: where the character stands.
    :param slips: of which kind, see :data:`SLIPS`.
    :return: the changes, each of which makes another text.
    :raises ImportError: homophones are wanted, and ``pypinyin`` is not installed.

    Example::

        >>> from fastnlp_adv.robustness.words import edited
        >>> [edited("很好看！", [typo]) for typo in character_typos("很好看！", 1, ["swap", "drop", "double"])]
        ['很看好！', '很看！', '很好好看！']
    """
    character, after = text[at], text[at + 1 : at + 2]
    found = []
    if "swap" in slips and is_spaceless(after) and after != character:
        found.append(Change(at, at + 2, after + character))
    if "drop" in slips and (is_spaceless(after) or is_spaceless(text[max(0, at - 1) : at])):
        found.append(Change(at, at + 1, ""))
    if "double" in slips:
        found.append(Change(at, at + 1, 2 * character))
    if "homophone" in slips:
        found += [Change(at, at + 1, other) for other in homophones(text, at)]
    return found
