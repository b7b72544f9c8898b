"""Name the things that a release still lacks, at the end of ``make dist``. CONTRIBUTING.md has the steps."""

from __future__ import annotations

import re
import sys
from configparser import RawConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _field(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1].strip()


def last_release(root: Path = ROOT) -> tuple[str, str] | None:
    """
    Return the version and the date of the newest dated section of the changelog.

    :param root: the repository.
    """
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## \[(\d[^\]]*)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    return (found[1], found[2]) if found else None


def lacking(root: Path = ROOT) -> list[str]:
    """
    Return the things that a release lacks, a sentence each.

    :param root: the repository.
    """
    config = RawConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    address = config["addresses"]["repository"]
    version = _field(root / "fastnlp_adv" / "__init__.py", r'^__version__ = "(.*)"$')
    newest = last_release(root)
    cited = _field(root / "CITATION.cff", r"^version: (.*)$"), _field(root / "CITATION.cff", r"^date-released: (.*)$")
    cited_address = _field(root / "CITATION.cff", r"^repository-code: (.*)$")
    checks = {
        "setup.cfg: `repository` is empty. Fill in the address of the repository.": address != "",
        f"CITATION.cff: expected `repository-code: {address}`, as in setup.cfg, but got {cited_address}.": (
            cited_address == (address or None)
        ),
        f"CHANGELOG.md: expected a dated section for {version}, but the newest is {newest}.": (
            newest is not None and newest[0] == version
        ),
        f"CITATION.cff: expected the version and date {newest} of CHANGELOG.md, but got {cited}.": cited == newest,
        "CHANGELOG.md: [Unreleased] has entries. Move them to the section of the release.": (
            _field(root / "CHANGELOG.md", r"^## \[Unreleased\]\n+(###.*)$") is None
        ),
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def main() -> None:
    """Print them, and end with status 1 if there are any."""
    found = lacking()
    print("\n".join(["Not ready to publish:", *found] if found else ["Ready to publish."]))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
