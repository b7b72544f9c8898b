"""Deliberate faults: each can be switched on and off, and what fails under one is noted."""

from __future__ import annotations

import json
import types
from pathlib import Path

import faults
import pytest

ROOT = Path(__file__).parents[2]
FAULTS = faults.FAULTS.values()


def test_there_are_many_and_each_says_what_is_wrong():
    assert len(FAULTS) >= 64
    assert len({fault.wrong for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert "\n" not in fault.wrong and fault.wrong.endswith("."), fault.name
        assert all((ROOT / test).exists() for test in fault.tests), fault.name


TINY = """
import subprocess, sys, torch
from fastnlp_adv.functional import ascend

UP = "from fastnlp_adv import FGM; from fastnlp_adv.functional import ascend; import torch;"
UP += "sys.exit(bool(ascend(torch.zeros(1, 1), torch.ones(1, 1), 1.0, dims=(1,)) < 0))"

def test_up():
    assert ascend(torch.zeros(1, 1), torch.ones(1, 1), 1.0, dims=(1,)) > 0

def test_up_in_a_process_of_its_own():
    assert subprocess.run([sys.executable, "-c", "import sys;" + UP]).returncode == 0

def test_down():
    assert ascend(torch.zeros(1, 1), torch.ones(1, 1), 1.0, dims=(1,)) < 0

def test_other():
    pass
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A fault that is looked for in a few tests, one of which fails without it, and where results go."""
    (tmp_path / "test_tiny.py").write_text(TINY)
    monkeypatch.setattr(faults, "RESULTS", tmp_path / "build" / "faults.json")
    monkeypatch.setattr(faults, "SUITE", tmp_path)
    monkeypatch.setattr(faults, "PRELOADED", ["torch", "fastNLP"])  # which is all that the tests below need
    fault = faults.FAULTS["ascent_goes_down"]
    return types.SimpleNamespace(fault=fault.__class__(**{**vars(fault), "tests": ("test_tiny.py",)}), folder=tmp_path)


def test_what_fails_for_the_fault_alone_has_caught_it_and_is_found_once(tiny):
    assert faults.run([tiny.fault], faults.Results(), whole=False, again=False) == []
    found = json.loads(faults.RESULTS.read_text())
    assert found["baseline"] == {"test_tiny.py": ["test_tiny.py::test_down"]}
    row = found["faults"]["ascent_goes_down"]
    assert row["caught_by"] == ["test_tiny.py::test_up", "test_tiny.py::test_up_in_a_process_of_its_own"]

    (tiny.folder / "test_tiny.py").unlink()  # so nothing can be run any more
    assert faults.run([tiny.fault], faults.Results(), whole=False, again=False) == []


def test_tests_that_cannot_be_run_catch_nothing(tiny):
    (tiny.folder / "test_tiny.py").unlink()
    results = faults.Results()
    results.baseline["test_tiny.py"] = []
    assert faults.run([tiny.fault], results, whole=False, again=False) == [tiny.fault]
    (cells,) = faults.Results().table([tiny.fault]).rows
    assert cells[1] == "ascent_goes_down" and "status 4" in cells[3]


def test_a_fault_that_cannot_be_switched_on_is_not_caught(tiny):
    with pytest.raises(faults.BrokenError, match=r"(?s)status 70.*KeyError: 'no fault'"):
        faults.failures("no fault", ("test_tiny.py",))
