"""The words of a text, and a text with one of them changed."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["change_word", "word_spans"]


def word_spans(text: str) -> list[tuple[int, int]]:
    """
    The words of a text: what stands between white space, without the punctuation around it.

    :param text: the text.
    :return: the beginning and the end of each.

    Example::

        >>> [text[a:b] for text in ["(Well-made), isn't it? ..."] for a, b in word_spans(text)]
        ['Well-made', "isn't", 'it']
    """
    spans = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        while start < end and _is_punctuation(text[start]):
            start += 1
        while start < end and _is_punctuation(text[end - 1]):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def change_word(text: str, word: int, new: str) -> str:
    """
    A text with one word changed and everything else as it was.

    :param text: the text.
    :param word: the number of the word, as :func:`word_spans` counts.
    :param new: what is put there.
    :return: the changed text.

    Example::

        >>> change_word("A good  film!", 2, "book")
        'A good  book!'
    """
    start, end = word_spans(text)[word]
    return text[:start] + new + text[end:]


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"
