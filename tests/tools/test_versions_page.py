"""The page holds every number, reason and pin of the rows."""

from __future__ import annotations

import json

import pytest
import versions_page
from versions_page import page


def row(python, torch, **changes):
    versions = {"python": python, "fastnlp_adv": "0.3.0", "torch": torch, "transformers": "4.38.2"}
    versions |= {"peft": None, "numpy": "1.26.4"}
    found = {"passed": 4321, "failed": 0, "skipped": 0, "skips": {}, "failures": [], "seconds": 610}
    return {"versions": versions, "pins": {}, "source": "abc", "date": "2026-11-24", **found, **changes}


OLD = row(
    "3.10.13", "2.1.2+cu118", skipped=9, skips={"needs CUDA": 7, "a | b": 2}, pins={"numpy<2": "built for numpy 1"}
)
NEW = row("3.13.0", "2.14.1", skipped=7, skips={"needs CUDA": 7})
AGAIN = "`make matrix` runs these again."


def test_the_tables():
    lines = page([OLD, NEW], "abc").splitlines()
    assert "| 3.10.13 | 2.1.2+cu118 | 4.38.2 | – | 1.26.4 | 4321 | 0 | 9 | 10 | 2026-11-24 |" in lines
    assert "| needs CUDA | 7 | 7 |" in lines
    assert r"| a \| b | 2 |  |" in lines
    assert "| 3.10, 2.1.2 | `numpy<2` | built for numpy 1 |" in lines
    assert "## Failed tests" not in lines and AGAIN not in lines
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {11, 4}


def test_failures_are_named():
    found = page([OLD, row("3.13.0", "2.14.1", failed=1, failures=["tests.test_it::test_fails[a]"])], "abc")
    assert "| 3.13, 2.14.1 | `tests.test_it::test_fails[a]` |" in found.splitlines()
    assert "## Failed tests" in found


def test_rows_of_another_source_are_named_with_the_version_of_the_package():
    early = [row("3.11.7", "2.2.2"), row("3.12.1", "2.8.0"), row("3.13.0", "2.13.0", source="def")]
    for each, version in zip(early, ("0.10.0", "0.2.0", "0.2.0"), strict=True):
        each["versions"]["fastnlp_adv"] = version
    lines = page([*early, row("3.13.0", "2.14.1", source="ghi")], "ghi").splitlines()
    told = [line for line in lines if "fastnlp_adv" in line]
    assert [("0.2.0" in line, "0.10.0" in line) for line in told] == [(True, False), (False, True)]
    named = [
        [name for name in ("3.11, 2.2.2", "3.12, 2.8.0", "3.13, 2.13.0", "3.13, 2.14.1") if name in line]
        for line in told
    ]
    assert named == [["3.12, 2.8.0", "3.13, 2.13.0"], ["3.11, 2.2.2"]]
    assert AGAIN in lines


def test_rows_are_in_the_order_of_their_versions(tmp_path):
    versions = [("3.13.0", "2.2.0"), ("3.9.18", "2.1.2"), ("3.10.2", "2.14.1"), ("3.10.2", "2.4.1+cu121")]
    for i, each in enumerate(versions):
        (tmp_path / f"{i}.json").write_text(json.dumps(row(*each)))
    found = [(r["versions"]["python"], r["versions"]["torch"]) for r in versions_page.read(tmp_path)]
    assert found == [versions[1], versions[3], versions[2], versions[0]]


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="to hold the rows of `make matrix`, but got none"):
        versions_page.read(tmp_path)
