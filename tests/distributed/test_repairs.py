"""Repairs, and an example that begins with them, in real processes."""

from __future__ import annotations

import json
from pathlib import Path

from processes import torchrun
from test_compat import NEEDED
from test_ddp import HERE


def test_every_rank_makes_the_repairs_and_can_do_what_they_are_for(tmp_path):
    done = torchrun(HERE / "repairs_worker.py", 2, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        found = json.loads(Path(tmp_path, f"rank{rank}.json").read_text())
        assert found["repaired"] == NEEDED
        assert found["left"] == {}
