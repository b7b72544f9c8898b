"""A row says what pytest's own report says, and is run again when it has to be."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import versions_row
from processes import run

import fastnlp_adv

SUITE = """
import pytest

def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skipif(True, reason="needs CUDA")
@pytest.mark.parametrize("i", range(3))
def test_skipped(i): pass
def test_skipped_inside(): pytest.skip("no compiler before torch 2.1\\n(and more)")
@pytest.mark.xfail(reason="a fault of torch")
def test_expected(): assert False
@pytest.fixture
def broken(): raise OSError
def test_errs(broken): pass
@pytest.fixture
def falls(): yield; raise OSError
def test_passes_and_errs(falls): pass
"""


@pytest.fixture
def report(tmp_path):
    def make(suite, *options):
        (tmp_path / "test_it.py").write_text(suite)
        report = tmp_path / "junit.xml"
        options = ["-p", "no:cacheprovider", f"--junitxml={report}", *options]
        run([sys.executable, "-m", "pytest", *options, "test_it.py"], cwd=tmp_path)
        return report

    return make


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two"])
def test_the_outcome(report, options):
    found = versions_row.outcome(report(SUITE, *options))
    assert found["failures"] == [f"test_it::test_{name}" for name in ("errs", "fails", "passes_and_errs")]
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 3, 5)
    reasons = {"expected to fail: a fault of torch": 1, "needs CUDA": 3, "no compiler before torch 2.1": 1}
    assert found["skips"] == reasons


def test_a_run_of_nothing_is_refused(report):
    with pytest.raises(ValueError, match="to hold tests that ran, but got none"):
        versions_row.outcome(report("import pytest\npytest.skip('all', allow_module_level=True)"))


def test_what_is_installed():
    found = versions_row.installed()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(found["torch"])  # which may lack "+cu121"
    assert found["fastNLP"]
    assert found["fastnlp_adv"] == fastnlp_adv.__version__


def test_the_source_is_what_the_suite_runs_on(tmp_path):
    for name in ("fastnlp_adv/a.py", "tests/deep/b.py", "setup.cfg", "docs/page.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = versions_row.source(tmp_path)
    (tmp_path / "docs" / "page.md").write_text("2")
    assert versions_row.source(tmp_path) == before
    for name in ("fastnlp_adv/a.py", "tests/deep/b.py", "setup.cfg"):
        (tmp_path / name).write_text("2")
        assert versions_row.source(tmp_path) != before
        before = versions_row.source(tmp_path)
    (tmp_path / "tests" / "deep" / "b.py").rename(tmp_path / "tests" / "c.py")
    assert versions_row.source(tmp_path) != before


def test_a_row_is_run_again_unless_it_is_green_and_of_this_source_and_these_pins(tmp_path):
    row, pins = tmp_path / "py3.11-torch2.2.json", {"numpy<2": "why"}
    assert not versions_row.is_current(row, pins)
    good = {"failed": 0, "source": versions_row.source(), "pins": pins}
    for change, current in (({}, True), ({"failed": 1}, False), ({"source": "other"}, False), ({"pins": {}}, False)):
        row.write_text(json.dumps({**good, **change}))
        assert versions_row.is_current(row, pins) == current


def test_the_script(report, tmp_path):
    row = tmp_path / "rows" / "py3.11-torch2.2.json"

    def said(*arguments):
        command = [sys.executable, versions_row.__file__, row, "--pin=numpy<2: built for: numpy 1", *arguments]
        return run(command).stdout.strip()

    assert said() == "to run"
    assert said(f"--report={report('def test_passes(): pass')}") == f"{row}: 1 passed, 0 failed, 0 skipped"
    assert said() == "current"
    found = json.loads(row.read_text())
    assert found["environment"] == "py3.11-torch2.2" and found["pins"] == {"numpy<2": "built for: numpy 1"}
