"""Chinese characters that sound the same: what an input method offers beside the one that was meant."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

from .words import is_spaceless

__all__ = ["homophones", "import_pinyin", "is_chinese"]

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\U00030000-\U000323af]")
_KANA = re.compile("[\u3041-\u30fa\u31f0-\u31ff\uff66-\uff9d]")


def homophones(text: str, at: int) -> list[str]:
    """
    Find the common characters that are typed like one of a text: of the same pinyin there, whatever the tone.

    Common are those of level 1 of GB 2312, in texts with traditional characters those of level 1 of Big5.

    :param text: the text; it tells how a character with several readings is read.
    :param at: where the character stands.
    :return: the other characters; none where it has no pinyin, and none in Japanese.
    :raises ImportError: ``pypinyin`` is not installed.

    Example, which needs ``pypinyin``::

        homophones("银行", 1)  # 行 is read hang here: ['杭', '航', ...]
    """
    if not is_chinese(text):
        return []
    start = at
    while start > 0 and is_spaceless(text[start - 1]):
        start -= 1
    end = at
    while end < len(text) and is_spaceless(text[end]):
        end += 1
    if end == at:
        return []
    sound = _sounds(text[start:end])[at - start]
    found = _by_sound("big5" if _is_traditional(text) else "gb2312").get(sound, [])
    return [character for character in found if character != text[at]]


def is_chinese(text: str) -> bool:
    """
    Tell whether a text is read as Chinese.

    :param text: the text.
    :return: whether it has Chinese characters, and no kana: Japanese reads them otherwise.

    Example::

        >>> is_chinese("这部film很好"), is_chinese("良い映画"), is_chinese("film")
        (True, False, False)
    """
    return _HAN.search(text) is not None and _KANA.search(text) is None


def import_pinyin() -> Callable[..., list[str]]:
    """
    Import ``lazy_pinyin`` of ``pypinyin``.

    :raises ImportError: it is not installed.
    """
    try:
        found: Callable[..., list[str]] = importlib.import_module("pypinyin").lazy_pinyin
        return found
    except ImportError as error:
        raise ImportError(
            "Expected the package `pypinyin` to be installed, which says how Chinese characters sound, but it is not. "
            "Run `pip install 'fastnlp_adv[chinese]'`, or leave \"homophone\" out of `slips`."
        ) from error


@lru_cache(maxsize=4096)
def _sounds(run: str) -> list[str]:
    """The pinyin of each character, without tones; empty for one that has none."""
    sounds = import_pinyin()(run, errors=lambda unknown: [""] * len(unknown))
    return sounds if len(sounds) == len(run) else [sound for each in run for sound in _sounds(each)]


@lru_cache(maxsize=2)
def _by_sound(encoding: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for character in _common(encoding):
        found.setdefault(_sounds(character)[0], []).append(character)
    found.pop("", None)
    return found


def _common(encoding: str) -> Iterator[str]:
    """Level 1 of the encoding, 3,755 characters of GB 2312 or 5,401 of Big5."""
    first, last = (0xB0A1, 0xD7F9) if encoding == "gb2312" else (0xA440, 0xC67E)
    for code in range(first, last + 1):
        character = code.to_bytes(2, "big").decode(encoding, errors="replace")
        if len(character) == 1 and character != "\ufffd":
            yield character


@lru_cache(maxsize=256)
def _is_traditional(text: str) -> bool:
    big5, gb2312 = (text.encode(encoding, "ignore").decode(encoding) for encoding in ("big5", "gb2312"))
    return not set(big5) <= set(gb2312)
