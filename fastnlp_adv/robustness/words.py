"""The words of a text, characters where the script has no spaces, and a text with some of it changed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Change", "edited", "is_spaceless", "word_spans"]

# Chinese and Japanese: what is written without spaces, and where a character alone means something
_SPACELESS = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0002fa1f\U00030000-\U000323af"
)
_UNIT = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")
_ALL_SPACELESS = re.compile(f"[{_SPACELESS}]+")


class Change(NamedTuple):
    """
    An edit of a text.

    :param start: where it begins, in the original text.
    :param end: where it ends, there.
    :param new: what stands there afterwards.
    """

    start: int
    end: int
    new: str


def is_spaceless(text: str) -> bool:
    """
    Tell whether a text consists of characters of a script without spaces: Chinese, or Japanese.

    :param text: the text.
    :return: whether each character is of that kind, and there is one.

    Example::

        >>> is_spaceless("好书"), is_spaceless("好 书"), is_spaceless("ok"), is_spaceless("")
        (True, False, False, False)
    """
    return _ALL_SPACELESS.fullmatch(text) is not None


def word_spans(text: str) -> list[tuple[int, int]]:
    """
    Find the words of a text: what stands between white space, without the punctuation around it. Each character of a
    script without spaces (see :func:`is_spaceless`) is a word of its own.

    :param text: the text.
    :return: the beginning and the end of each.

    Example::

        >>> [text[a:b] for text in ["(Well-made), isn't it? ..."] for a, b in word_spans(text)]
        ['Well-made', "isn't", 'it']
        >>> [text[a:b] for text in ["这部film，(很)好！"] for a, b in word_spans(text)]
        ['这', '部', 'film', '很', '好']
    """
    spans = []
    for match in _UNIT.finditer(text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while start < end and _is_punctuation(text[end - 1]):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def edited(text: str, changes: Iterable[Change]) -> str:
    """
    Make changes in a text, and leave everything else as it is.

    :param text: the text.
    :param changes: do not overlap.
    :return: the changed text.

    Example::

        >>> edited("A good  film!", [Change(8, 12, "book"), Change(2, 6, "bad")])
        'A bad  book!'
    """
    pieces, at = [], 0
    for start, end, new in sorted(changes):
        pieces += [text[at:start], new]
        at = end
    return "".join([*pieces, text[at:]])


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
