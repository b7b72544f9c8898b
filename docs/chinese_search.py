"""The search of the Chinese site: runs of Chinese characters by their pairs, and English words by their stems."""

from __future__ import annotations

import re

from sphinx.search.en import SearchEnglish

__all__ = ["ChineseSearch"]

#: a run of Chinese characters, or a word of anything else
_WORDS = re.compile(r"[\u4e00-\u9fff]+|[^\W\u4e00-\u9fff]+")


class ChineseSearch(SearchEnglish):
    """
    Finds a Chinese word wherever its characters stand beside each other, without a dictionary of words.

    Index and query are split alike: ``splitQuery`` below is :meth:`split` in JavaScript.
    """

    lang = "chinese"
    js_splitter_code = r"""
function splitQuery(query) {
  const words = query.match(/[\u4e00-\u9fff]+|(?:(?![\u4e00-\u9fff])[\p{Letter}\p{Number}_])+/gu) || [];
  return words.flatMap((word) =>
    /^[\u4e00-\u9fff]{2,}$/.test(word) ? [...word].slice(1).map((next, i) => word[i] + next) : [word]);
}
"""

    def split(self, input: str) -> list[str]:
        """
        Split a text into what it is found by.

        :param input: the text.
        :return: words, and pairs of Chinese characters.
        """
        found: list[str] = []
        for word in _WORDS.findall(input):
            chinese = len(word) > 1 and "\u4e00" <= word[0] <= "\u9fff"
            found += [word[i : i + 2] for i in range(len(word) - 1)] if chinese else [word]
        return found
