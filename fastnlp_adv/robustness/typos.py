"""Typos: misspelt words and mistyped characters that fool a model."""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

from ..options import at_least, check_count, must_be, option, options
from .text_attack import TextAttack
from .texts import SPACELESS, Change, Search, Tokens, is_spaceless, word_spans

#: swapped neighbours, left out, typed twice, the key beside it, and a character that sounds the same
SLIPS = ("swap", "drop", "double", "key", "homophone")
SHORTEST = 4  # letters: with fewer there is nothing to swap between the first and the last
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\U00030000-\U000323af]")
_KANA = re.compile("[\u3041-\u30fa\u31f0-\u31ff\uff66-\uff9d]")


def _are_slips(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and set(value) <= set(SLIPS)


@options
class Typos(TextAttack):
    r"""
    Misspells the words that a prediction depends on (after Pruthi et al. 2019, https://arxiv.org/abs/1905.11268). The
    words of a text are tried one after the other, by falling saliency

    .. math:: s = \sqrt{\textstyle\sum_{i \in \text{word}} \lVert \partial \ell / \partial e_i \rVert_2^2}

    over the lookups :math:`e_i` of the tokens of the word, on the original text. A word is given one typo. All typos of
    it, or ``candidates`` of them, are tried on the model, which gets the misspelt text as its tokenizer reads it, and
    the worst is kept if it raises the loss. The text is done when the prediction is wrong, ``max_typos`` typos are
    made, or all words have been tried.

    Words are the stretches between white space, without the punctuation around. Words of at least 4 letters, and
    nothing but letters, are misspelt: two neighbouring letters are swapped, one is left out, typed twice, or replaced
    by the key beside it on a QWERTY keyboard; the first and the last letter stay. In Chinese and Japanese each
    character is a word, and is swapped with the next, left out, typed twice, or, in Chinese, replaced by a common
    character of the same pinyin. Special tokens that are written out in the text, unknown tokens and the part that the
    tokenizer cuts off stay. A second typo that would undo a part of the first is not tried, so the edit distance
    between the texts is the number of typos.

    :param model: the model; it is in eval mode during an attack only.
    :options:
    :raises ValueError: if an argument is out of range, or the tokenizer is not a fast one.

    ``attack`` raises ``ImportError`` at once for Chinese texts, if ``slips`` has homophones and ``pypinyin`` is not
    installed.

    Example, for a model and a tokenizer of yours::

        Typos(model, tokenizer).attack(texts, labels, progress=tqdm.tqdm)
        Typos(model, tokenizer, slips=["swap", "homophone"]).attack(texts, labels)
        Typos(model, tokenizer, side="second").attack(list(zip(premises, hypotheses)), labels)
    """

    gives_up = False  # another word may help where one does not
    gradients = "first"

    max_typos: int = option(default=2, check=check_count, doc="the number of typos that may be made, at least 1")
    candidates: int = option(default=16, check=check_count, doc="the number of typos of a word that are tried")
    seed: int = option(
        default=0, check=at_least(0), doc="of the choice among the typos of a word, the same in all models and batches"
    )
    slips: Sequence[str] = option(
        default=SLIPS,
        check=must_be(f"a list of some of {', '.join(SLIPS)}", _are_slips),
        doc='the kinds of typos: ``"swap"``, ``"drop"``, ``"double"``, ``"key"`` (the key beside it, in words of '
        'letters) and ``"homophone"`` (the same pinyin, in Chinese; needs the package ``pypinyin``)',
    )

    @property
    def limit(self) -> int:
        return self.max_typos

    def prepare(self, texts: list[str]) -> None:
        if "homophone" in self.slips and any(_is_chinese(text) for text in texts):
            _import_pinyin()  # raises where it is not installed

    def propose(self, search: Search) -> list[Change]:
        if search.plan is None:
            search.plan = self._by_saliency(search.original, search.tokens) if search.tokens else []
        while search.plan:  # the typos of the next word that has any
            changes = self._typos(search, *search.plan.pop(0))
            now, *then = self.ids(search, [search.text, *map(search.changed, changes)])
            # where the tokenizer does not see the typo, as in an unknown word, losses differ by rounding errors only
            if seen := [change for change, ids in zip(changes, then, strict=True) if ids != now]:
                return seen
        return []

    def _by_saliency(self, text: str, tokens: Tokens) -> list[tuple[int, int, int]]:
        """Return number, start and end of the words that can be misspelt, the most salient first."""
        special = self.special_ids()
        squares = tokens.gradients.square().sum(1).tolist()
        saliency = {}
        for number, (start, end) in enumerate(word_spans(text)):
            word = text[start:end]
            own = [i for i, (a, b) in enumerate(tokens.spans) if max(a, start) < min(b, end)]
            is_special = any(tokens.ids[i] in special for i in own)
            if own and not is_special and (is_spaceless(word) or (len(word) >= SHORTEST and word.isalpha())):
                saliency[number, start, end] = sum(squares[i] for i in own)
        return sorted(saliency, key=lambda word: -saliency[word])

    def _typos(self, search: Search, number: int, start: int, end: int) -> list[Change]:
        text = search.original
        if is_spaceless(text[start:end]):
            found = character_typos(text, start, self.slips)
        else:
            found = [Change(start, end, typo) for typo in typos_of(text[start:end], self.slips)]
        free = [change for change in found if search.leaves(change.start, change.end)]
        if len(free) > self.candidates:
            free = random.Random(f"{self.seed} {number} {text}").sample(free, self.candidates)
        made = len(search.changes)
        return [change for change in free if not made or _is_farther(text, search.changed(change), made)]


def _beside(row: int, at: int) -> str:
    """Return the keys beside one; each row of a keyboard is half a key to the right of the row above."""
    places = [(row, at - 1), (row, at + 1), (row - 1, at), (row - 1, at + 1), (row + 1, at - 1), (row + 1, at)]
    return "".join(_ROWS[r][c] for r, c in places if 0 <= r < len(_ROWS) and 0 <= c < len(_ROWS[r]))


_NEIGHBOURS = {key: _beside(row, at) for row, keys in enumerate(_ROWS) for at, key in enumerate(keys)}


def typos_of(word: str, slips: Collection[str] = SLIPS) -> list[str]:
    """List the other words that one slip makes of a word of letters, whose first and last letter stay."""
    inner = range(1, len(word) - 1 if len(word) >= SHORTEST else 1)
    found = []
    if "swap" in slips:
        found += [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1]]
    if "drop" in slips:
        found += [word[:i] + word[i + 1 :] for i in inner]
    if "double" in slips:
        found += [word[: i + 1] + word[i:] for i in inner]
    for i in inner if "key" in slips else ():
        keys = _NEIGHBOURS.get(word[i].lower(), "")
        found += [word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :] for key in keys]
    return [typo for typo in dict.fromkeys(found) if typo != word]


def character_typos(text: str, at: int, slips: Collection[str] = SLIPS) -> list[Change]:
    """List the changes that one slip makes of a character of Chinese or Japanese; only such are swapped or dropped."""
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


def homophones(text: str, at: int) -> list[str]:
    """List the common characters of the same pinyin as one of a text, by its reading there."""
    run = next((run for run in SPACELESS.finditer(text) if run.start() <= at < run.end()), None)
    if run is None or not _is_chinese(text):
        return []
    sound = _sounds(run[0])[at - run.start()]
    return [other for other in _by_sound(_is_traditional(text)).get(sound, []) if other != text[at]]


def _is_chinese(text: str) -> bool:
    """Tell whether a text has Chinese characters and no kana, with which it is Japanese."""
    return _HAN.search(text) is not None and _KANA.search(text) is None


def _import_pinyin() -> Callable[..., list[str]]:
    try:
        found: Callable[..., list[str]] = importlib.import_module("pypinyin").lazy_pinyin
        return found
    except ImportError as error:
        raise ImportError(
            "Expected the package `pypinyin` to be installed, which has the sounds of Chinese characters, but it is "
            "not. Run `pip install 'fastnlp_adv[chinese]'`, or leave \"homophone\" out of `slips`."
        ) from error


@lru_cache(maxsize=4096)
def _sounds(run: str) -> list[str]:
    """Return the pinyin of each character, without tones; empty for one that has none."""
    sounds = _import_pinyin()(run, errors=lambda unknown: [""] * len(unknown))
    return sounds if len(sounds) == len(run) else [sound for each in run for sound in _sounds(each)]


@lru_cache(maxsize=2)
def _by_sound(is_traditional: bool) -> dict[str, list[str]]:
    """Return the common characters by pinyin: level 1 of GB 2312, 3,755 characters, or of Big5, 5,401."""
    encoding, first, last = ("big5", 0xA440, 0xC67E) if is_traditional else ("gb2312", 0xB0A1, 0xD7F9)
    found: dict[str, list[str]] = {}
    for code in range(first, last + 1):
        character = code.to_bytes(2, "big").decode(encoding, errors="replace")
        if len(character) == 1 and character != "\ufffd" and _sounds(character)[0]:
            found.setdefault(_sounds(character)[0], []).append(character)
    return found


@lru_cache(maxsize=256)
def _is_traditional(text: str) -> bool:
    big5, gb2312 = (text.encode(encoding, "ignore").decode(encoding) for encoding in ("big5", "gb2312"))
    return not set(big5) <= set(gb2312)


def _is_farther(first: str, second: str, limit: int) -> bool:
    """Tell whether the distance of Damerau and Levenshtein, of separate edits, is above the limit."""
    if abs(len(first) - len(second)) > limit:
        return True
    far = limit + 1
    before: dict[int, int] = {}
    above = {j: j for j in range(min(limit, len(second)) + 1)}
    for i in range(1, len(first) + 1):
        row: dict[int, int] = {}
        for j in range(max(0, i - limit), min(len(second), i + limit) + 1):
            best = above.get(j, far) + 1
            if j:
                best = min(best, row.get(j - 1, far) + 1, above.get(j - 1, far) + (first[i - 1] != second[j - 1]))
            if i > 1 and j > 1 and first[i - 2 : i] == second[j - 1] + second[j - 2]:
                best = min(best, before.get(j - 2, far) + 1)
            row[j] = best
        before, above = above, row
    return above.get(len(second), far) > limit
