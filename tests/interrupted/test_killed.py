"""kill -9 between two passes, resume from the last checkpoint: the weights of the run that was never interrupted."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import killed
import pytest
import support
from processes import run

#: forward passes per batch
PASSES = {
    "fgm": 2,
    "fgm start every": 1,
    "fgsm": 2,
    "pgd": 4,
    "pgd weights": 4,
    "pgd random": 5,
    "freelb": 3,
    "tavat": 2,
    "atta": 1,
    "awp": 2,
    "rdrop": 2,
    "vat": 3,
    "smart": 4,
    "r3f": 2,
    "gradient penalty": 1,
}


def kill_points():
    """Two random forward passes for each method, after the first checkpoint."""
    draw = random.Random(2026)
    for method, passes in PASSES.items():
        first, last = killed.SAVE_EVERY * passes + 1, killed.N_BATCHES * passes
        yield from ((method, forward) for forward in draw.sample(range(first, last + 1), 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(Path(killed.__file__)), str(folder), json.dumps(list(kill_points()))]
    done = run(command)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def last_checkpoint(folder):
    return max(folder.glob("*/trainer-*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))


@pytest.mark.filterwarnings("ignore:R-Drop found no dropout")
@pytest.mark.parametrize("method, forward", list(kill_points()))
def test_resumed_run_ends_like_the_uninterrupted_one(folder, tmp_path, method, forward):
    whole = killed.train(method, killed.Mortal(), tmp_path)
    checkpoint = last_checkpoint(folder / f"{method}-{forward}")
    rest = killed.Mortal()
    killed.train(method, rest, tmp_path, resume_from=str(checkpoint))
    assert 0 < rest.forwards < whole.forwards
    assert support.distance(rest, whole) < 1e-6
