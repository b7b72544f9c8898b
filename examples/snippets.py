"""
Movie review snippets that people have rated, from the source distribution of the PyPI package ``vaderSentiment``.

Several people rated each snippet from -4 (very negative) to 4 (very positive). The file has one line a snippet:
``id <tab> mean rating <tab> text``. A mean above 0 is labelled ``positive``, one below 0 ``negative``; the 37 snippets
of exactly 0 are left out. Which movie a snippet is about is not recorded, so two snippets about one movie can fall into
training and test data.

    C.J. Hutto and E. Gilbert. VADER: A parsimonious rule-based model for sentiment analysis of social media text.
    ICWSM 2014.
"""

import hashlib
import html
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO

PACKAGE = "vaderSentiment==3.3.2"
SDIST = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
OWN_DATA = "or train on a file of your own with `--dataset reviews.csv` (columns `text` and `label`)"


def cache_dir() -> Path:
    """
    :return: ``$FASTNLP_ADV_CACHE``, else ``fastnlp_adv`` in the user's cache folder.
    """
    own = os.environ.get("FASTNLP_ADV_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnlp_adv"


def load_snippets() -> tuple[list[str], list[str]]:
    """
    :return: the texts, and the label of each, ``"positive"`` or ``"negative"``.
    :raises ConnectionError: the package can be neither found in the cache nor fetched.
    :raises ValueError: what was fetched is not the file that this code was written for.
    """
    return parse(read_ratings(fetch()))


def fetch() -> Path:
    """
    Find the source distribution in the cache, or fetch it with pip.

    :return: the path of the archive, whose SHA-256 has been checked.
    """
    archive = cache_dir() / SDIST
    if archive.is_file() and sha256(archive) == SHA256:
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        downloaded = _pip_download(Path(folder))
        if sha256(downloaded) != SHA256:
            raise ValueError(
                f"Expected {SDIST} to have SHA-256 {SHA256}, but got {sha256(downloaded)}; it was not kept."
            )
        os.replace(downloaded, archive)  # within one file system, so that nobody ever sees half a file
    return archive


def _pip_download(folder: Path) -> Path:
    # pip runs a package's setup.py to learn its name, so pip itself has to check the hash before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", "vaderSentiment", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement), "-d", str(folder)]
    print(f"Fetching the movie review snippets ({PACKAGE}, 2.5 MB) with pip ...", flush=True)
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode == 0 and (folder / SDIST).is_file():
        return folder / SDIST
    if "DO NOT MATCH THE HASHES" in pip.stderr:
        raise ValueError(f"Expected {SDIST} to have SHA-256 {SHA256}, but pip got another file; it was not kept.")
    lines = [line for line in pip.stderr.splitlines() if "ERROR" in line or "No module named" in line]
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with status {pip.returncode}"
    raise ConnectionError(f"pip could not fetch {PACKAGE} ({reason}); check the connection, {OWN_DATA}.")


def sha256(path: Path) -> str:
    """
    :param path: a file.
    :return: its SHA-256 in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_ratings(archive: Path) -> str:
    """
    Read the ratings out of the archive inside the archive; nothing is unpacked to the disk.

    :param archive: the source distribution.
    :return: the text of the ratings file.
    """
    with tarfile.open(archive) as outer, tarfile.open(fileobj=_member(outer, INNER_ARCHIVE)) as inner:
        return _member(inner, RATINGS).read().decode("utf-8")


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    for member in archive.getmembers():
        if member.isfile() and member.name.rsplit("/", 1)[-1] == name:
            return archive.extractfile(member)
    raise ValueError(f"Expected a file {name} in {archive.name}, but there is none.")


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
