"""Turn the rows that `make matrix` has written into docs/versions.md and its Chinese twin."""

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

ENGLISH = {
    "title": "# Versions",
    "twin": "[简体中文](versions.zh-CN.md)",
    "intro": """\
The whole suite in each environment, as `make matrix` has found it. The run writes this page, from the files in
[versions/](versions). On Linux, with the default wheels of torch, without a GPU.""",
    "results": ["Python", *PACKAGES, "passed", "failed", "skipped", "minutes", "date"],
    "failures": "## What failed",
    "skips": "## What was skipped, and why",
    "why": "why",
    "pins": "## What was held back",
    "rest": "All else is the newest that pip finds for that Python.",
    "pinned": ["Python, torch", "requirement", "why"],
    "nothing": "Nothing.",
    "outdated": "Measured on an earlier source, of fastnlp_adv {version}, and not yet on the present one: {names}.",
    "separator": "; ",
    "again": "`make matrix` runs these again.",
}
CHINESE = {
    "title": "# 版本",
    "twin": "[English](versions.md)",
    "intro": """\
每个环境都跑全部测试。本页由 `make matrix` 根据 [versions/](versions) 中的文件写成。
系统为 Linux，torch 为默认安装包，没有 GPU。""",
    "results": ["Python", *PACKAGES, "通过", "失败", "跳过", "分钟", "日期"],
    "failures": "## 失败的测试",
    "skips": "## 跳过的测试及原因",
    "why": "原因（原文）",
    "pins": "## 限定的版本",
    "rest": "其余都是 pip 为该 Python 找到的最新版本。",
    "pinned": ["Python, torch", "要求", "原因（原文）"],
    "nothing": "无。",
    "outdated": "以下环境是用较早的源码（fastnlp_adv {version}）测得的，尚未用当前源码重测：{names}。",
    "separator": "；",
    "again": "`make matrix` 会重跑这些环境。",
}


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


def page(rows: list[dict[str, Any]], words: dict[str, Any], present: str) -> str:
    """
    Write the page.

    :param rows: those of :func:`read`.
    :param words: ``ENGLISH`` or ``CHINESE``.
    :param present: the source as it is now, :func:`tools.versions_row.source`; rows of another are named.
    :return: Markdown.
    """
    parts = [words["title"], words["twin"], words["intro"], _table(words["results"], map(_result, rows))]
    outdated = [row for row in rows if row["source"] != present]
    for version in sorted({row["versions"]["fastnlp_adv"] for row in outdated}, key=_numbers):
        names = [_name(row) for row in outdated if row["versions"]["fastnlp_adv"] == version]
        parts.append(words["outdated"].format(version=version, names=words["separator"].join(names)))
    if outdated:
        parts.append(words["again"])
    failed = [[_name(row), f"`{name}`"] for row in rows for name in row["failures"]]
    if failed:
        parts += [words["failures"], _table(["Python, torch", ""], failed)]
    reasons = sorted({reason for row in rows for reason in row["skips"]})
    skips = [[reason, *(row["skips"].get(reason, "") for row in rows)] for reason in reasons]
    parts += [words["skips"], _table([words["why"], *map(_name, rows)], skips) if skips else words["nothing"]]
    pins = [[_name(row), f"`{pin}`", why] for row in rows for pin, why in row["pins"].items()]
    parts += [words["pins"], *([_table(words["pinned"], pins)] if pins else []), words["rest"]]
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
    """Write both pages."""
    try:
        rows = read()
    except ValueError as error:
        sys.exit(str(error))
    present = source()
    for name, words in (("versions.md", ENGLISH), ("versions.zh-CN.md", CHINESE)):
        (ROOT / "docs" / name).write_text(page(rows, words, present))
        print(f"docs/{name}: {len(rows)} environments")


if __name__ == "__main__":
    main()
