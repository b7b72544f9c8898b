"""
What the page of the benchmarks says, a dictionary for each language. Records hold numbers, names and settings: all
sentences about them are here.
"""

from __future__ import annotations

from typing import Any

from benchmarks.words.chinese import CHINESE
from benchmarks.words.english import ENGLISH

__all__ = ["CHINESE", "ENGLISH", "Words", "variant"]

Words = dict[str, Any]


def variant(name: str, words: Words) -> str:
    """
    Name a variant on the page.

    :param name: that of the record, such as "FGM, textbook".
    :param words: those of the language.
    """
    return words["comma"].join(words["variant"].get(part, part) for part in name.split(", "))
