"""
Human-rated movie review snippets, from the source distribution of the PyPI package ``vaderSentiment``.

Several people rated each snippet from -4 (very negative) to 4 (very positive). The file has one line per snippet:
``id <tab> mean rating <tab> text``. A mean above 0 is labelled ``positive``, a mean below 0 ``negative``; the 37
snippets with a mean of 0 are left out. The file does not name the movies, so two snippets about one movie can be in
training and test data.

    C.J. Hutto and E. Gilbert. VADER: A parsimonious rule-based model for sentiment analysis of social media text.
    ICWSM 2014.
"""

from __future__ import annotations

import html
import tarfile
from pathlib import Path

from sdist import Sdist, member
from sdist import fetch as fetch_sdist

PACKAGE = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATINGS = "movieReviewSnippets_GroundTruth.txt"


def load_snippets() -> tuple[list[str], list[str]]:
    """
    :return: the texts, and the label of each, ``"positive"`` or ``"negative"``.
    :raises ConnectionError: the package is not in the cache and cannot be fetched.
    :raises ValueError: the fetched file is not the expected one.
    """
    return parse(read_ratings(fetch()))


def fetch() -> Path:
    """
    :return: the path of the source distribution, in the cache or fetched into it.
    """
    return fetch_sdist(Sdist(PACKAGE, SDIST, SHA256, f"the movie review snippets ({PACKAGE}, 2.5 MB)"))


def read_ratings(archive: Path) -> str:
    """
    Read the ratings out of the archive inside the archive; nothing is unpacked to the disk.

    :param archive: the source distribution.
    :return: the text of the ratings file.
    """
    with tarfile.open(archive) as outer, tarfile.open(fileobj=member(outer, INNER_ARCHIVE)) as inner:
        return member(inner, RATINGS).read().decode("utf-8")


def parse(ratings: str) -> tuple[list[str], list[str]]:
    """
    :param ratings: lines of ``id <tab> mean rating <tab> text``.
    :return: the texts, without HTML entities and repeated blanks, and their labels.

    Example::

        >>> parse("1\\t2.5\\tA  joy &amp; a ride.\\r\\n2\\t0.0\\tIt exists.\\r\\n3\\t-1.2\\tDull.")
        (['A joy & a ride.', 'Dull.'], ['positive', 'negative'])
    """
    texts, labels = [], []
    for line in ratings.splitlines():
        _, rating, text = line.split("\t")
        if float(rating) != 0:
            texts.append(" ".join(html.unescape(text).split()))
            labels.append("positive" if float(rating) > 0 else "negative")
    return texts, labels
