"""The Trainer of transformers ends with the same weights as its training written out."""

from __future__ import annotations

import itertools
import sys

import by_hand
import pytest
import torch
from processes import run
from support import since_torch

pytest.importorskip("fastnlp_adv.trainers.transformers", exc_type=ImportError)  # transformers may be too old


def test_the_table_pairs_every_level_with_every_other():
    columns = [[*by_hand.METHODS], *by_hand.LEVELS]
    for (i, first), (j, second) in itertools.combinations(enumerate(columns), 2):
        assert {(row[i], row[j]) for row in by_hand.TABLE} == {*itertools.product(first, second)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = run([sys.executable, by_hand.__file__, folder])
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("row", by_hand.TABLE, ids=lambda row: "-".join(map(str, row)))
def test_the_trainer_trains_the_weights_of_a_loop_by_hand(row, request):
    expected, start = by_hand.by_hand(*row), by_hand.build(row[4])
    plain = by_hand.by_hand("none", *row[1:])
    if row[3] == 2:
        first, second = (results[row] for results in request.getfixturevalue("ranks"))
        assert all(torch.equal(first["weights"][name], w) for name, w in second["weights"].items())
        assert first["reductions"] == by_hand.STEPS
        model = by_hand.build(row[4])
        model.load_state_dict(first["weights"])
    else:
        model = by_hand.train(*row)
    assert by_hand.distance(model, expected) < 1e-6
    assert by_hand.distance(model, plain) > 1e-5 and by_hand.distance(model, start) > 1e-3


@since_torch(2, 6, "transformers loads checkpoints")
def test_ranks_go_on_from_a_checkpoint(ranks):
    for results in ranks:
        whole, resumed = results["resumed"]
        assert all(torch.equal(w, resumed[name]) for name, w in whole.items())
