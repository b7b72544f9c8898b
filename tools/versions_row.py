"""Write one row of docs/versions.md as JSON: what is installed, and what pytest's report says of the whole suite."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "fastNLP", "transformers", "peft", "datasets", "numpy", "setuptools", "pytest")
SOURCES = (
    "fastnlp_adv/**/*.py",
    "tests/**/*.py",
    "examples/**/*.py",
    "benchmarks/**/*.py",
    "studies/**/*.py",
    "tools/**/*.py",
    "setup.cfg",
    "pyproject.toml",
)


def source(root: Path = ROOT) -> str:
    """
    Name the source that the suite runs on: a row of another source is out of date.

    :param root: the folder of the repository.
    :return: the beginning of a hash over names and contents.
    """
    found = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in root.glob(pattern)}):
        content = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:12]


def package_version() -> str:
    """Read the version of the package from its source: an editable installation may name the one that it began with."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "fastnlp_adv" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("Expected fastnlp_adv/__init__.py to set `__version__`, but it does not.")
    return found[1]


def installed() -> dict[str, str | None]:
    """
    Look up the versions that a row names.

    :return: each with its name; ``None`` for what is not installed.
    """

    def find(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    own = {"python": platform.python_version(), "fastnlp_adv": package_version()}
    return {**own, **{name: find(name) for name in PACKAGES}}


def outcome(report: Path) -> dict[str, Any]:
    """
    Count what a run of pytest came to.

    :param report: what ``pytest --junitxml`` has written.
    :return: ``passed``, ``failed`` (errors outside the test itself count, too), ``skipped``, ``skips`` (how many for
        each reason), ``failures`` (the names), ``seconds``.
    :raises ValueError: if no test was run.
    """
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    skips: Counter[str] = Counter()
    failures, passed = set(), 0
    for case in (case for suite in suites for case in suite.iter("testcase")):
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.add(f"{case.get('classname')}::{case.get('name')}")
        elif skip is not None:
            skips[_reason(skip)] += 1
        else:
            passed += 1
    if not passed + len(failures):
        raise ValueError(f"Expected `{report}` to hold tests that ran, but got none.")
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": sum(skips.values()),
        "skips": dict(sorted(skips.items())),
        "failures": sorted(failures),
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites)),
    }


def _reason(skip: ElementTree.Element) -> str:
    """Why; an expected failure says so, and what is particular to this machine or parameter is left out."""
    lines = (skip.get("message") or "").strip().splitlines() or ["no reason given"]
    words = re.sub(r"/\S*/", "", lines[0])
    return f"expected to fail: {words}" if skip.get("type") == "pytest.xfail" else words


def is_current(row: Path, pins: dict[str, str]) -> bool:
    """
    Tell whether a run has nothing to add to a row.

    :param row: the file.
    :param pins: what the environment holds back, and why.
    :return: whether it is there, green, and of this source and these pins.
    """
    if not row.exists():
        return False
    found = json.loads(row.read_text())
    return found["failed"] == 0 and found["source"] == source() and found["pins"] == pins


def main() -> None:
    """Write the row, or say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", type=Path, help="the file of the row")
    parser.add_argument("--report", type=Path, help="pytest's; without one, prints whether the row is current")
    parser.add_argument("--pin", action="append", default=[], metavar="REQUIREMENT: WHY", help="what is held back here")
    args = parser.parse_args()
    pins = dict(pin.split(": ", 1) for pin in args.pin)
    if args.report is None:
        print("current" if is_current(args.row, pins) else "to run")
        return
    about = {"environment": args.row.stem, "date": date.today().isoformat(), "source": source()}
    row = {**about, "versions": installed(), "pins": pins, **outcome(args.report)}
    args.row.parent.mkdir(parents=True, exist_ok=True)
    args.row.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n")
    print(f"{args.row}: {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped")


if __name__ == "__main__":
    main()
