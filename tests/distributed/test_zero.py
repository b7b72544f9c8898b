"""Models that DeepSpeed shards over real processes, against one process. Skipped where DeepSpeed is not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import support
import torch
from processes import run

HERE = Path(__file__).parent

if support.TORCH < (2, 6) or importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs torch 2.6 or later, and DeepSpeed", allow_module_level=True)

import sharded  # noqa: E402
from sharded import norm_of_difference  # noqa: E402

METHODS = [name for name in sharded.ALL if name not in ("smart bregman", "fgm of both")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    done = run([sys.executable, HERE / "zero_worker.py", folder])
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_equal_one_process(found, stage, method):
    each = found[stage, method]
    if stage == 3 and method in sharded.WHOLE:
        assert "of which a process holds a shard" in each["refused"]
        return
    moved = norm_of_difference(each["alone"], each["before"])
    assert moved > 1e-3
    assert norm_of_difference(each["weights"], each["alone"]) < 1e-6 * moved
