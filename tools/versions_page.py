"""Turn the rows that `make matrix` has written into docs/versions.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.table import Table  # noqa: E402 - which is found by the line above
from tools.versions_row import source  # noqa: E402

FOLDER = ROOT / "docs" / "versions"
PACKAGES = ("torch", "transformers", "peft", "numpy")

INTRODUCTION = """\
# Versions

Check which versions of Python and torch the package is tested with. `make matrix` runs all tests in each environment,
and writes this page from the files in [versions/](versions). All runs are on Linux, with the default wheels of torch,
without a GPU."""
RESULTS = ["Python", *PACKAGES, "passed", "failed", "skipped", "minutes", "date"]


def read(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """
    Read the rows, oldest Python and oldest torch first.

    :param folder: where they are.
    :raises ValueError: if there is none.
    """
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    if not rows:
        raise ValueError(f"Expected `{folder}` to hold the rows of `make matrix`, but got none.")
    return sorted(rows, key=lambda row: [_numbers(row["versions"][name]) for name in ("python", "torch")])


def page(rows: list[dict[str, Any]], present: str) -> str:
    """
    Write the page.

    :param rows: the rows that :func:`read` returns.
    :param present: the current source, :func:`tools.versions_row.source`; rows of another source are named.
    :return: Markdown.
    """
    parts = [INTRODUCTION, _table(RESULTS, map(_result, rows))]
    outdated = [row for row in rows if row["source"] != present]
    for version in sorted({row["versions"]["fastnlp_adv"] for row in outdated}, key=_numbers):
        names = [_name(row) for row in outdated if row["versions"]["fastnlp_adv"] == version]
        early = f"Measured on an earlier source, of fastnlp_adv {version}, not on the current one"
        parts.append(f"{early}: {'; '.join(names)}.")
    if outdated:
        parts.append("`make matrix` runs these again.")
    failed = [[_name(row), f"`{name}`"] for row in rows for name in row["failures"]]
    if failed:
        parts += ["## Failed tests", _table(["Python, torch", ""], failed)]
    reasons = sorted({reason for row in rows for reason in row["skips"]})
    skips = [[reason, *(row["skips"].get(reason, "") for row in rows)] for reason in reasons]
    shown = _table(["reason", *map(_name, rows)], skips) if skips else "Nothing."
    parts += ["## Skipped tests", shown]
    pins = [[_name(row), f"`{pin}`", why] for row in rows for pin, why in row["pins"].items()]
    parts += ["## Pinned requirements", *([_table(["Python, torch", "requirement", "reason"], pins)] if pins else [])]
    parts.append("All other packages are the newest that pip finds for this version of Python.")
    return "\n\n".join(parts) + "\n"


def _result(row: dict[str, Any]) -> list[Any]:
    versions = [row["versions"][name] or "–" for name in ("python", *PACKAGES)]
    return [*versions, row["passed"], row["failed"], row["skipped"], round(row["seconds"] / 60), row["date"]]


def _name(row: dict[str, Any]) -> str:
    """The environment in a table's head: "3.10, 2.1.2"."""
    python, torch = row["versions"]["python"], row["versions"]["torch"]
    return f"{'.'.join(python.split('.')[:2])}, {torch.split('+')[0]}"


def _table(head: list[str], rows: Iterable[list[Any]]) -> str:
    return Table(head, [[str(cell).replace("|", r"\|") for cell in row] for row in rows], left=len(head)).markdown()


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def main() -> None:
    """Write the page."""
    try:
        rows = read()
    except ValueError as error:
        sys.exit(str(error))
    (ROOT / "docs" / "versions.md").write_text(page(rows, source()))
    print(f"docs/versions.md: {len(rows)} environments")


if __name__ == "__main__":
    main()
