"""
Several real processes against one: the same weights, the same on each rank, one reduction per optimizer step. And what
else is done on ranks: repairs, the program of a page, and trainings that break.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import scenarios
import torch
from processes import run

from tests.test_compat import NEEDED

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the ranks left."""
    folder = tmp_path_factory.mktemp("ddp")
    done = run([sys.executable, HERE / "worker.py", folder])
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """The results of each rank, by the number of ranks."""
    return {
        world: [torch.load(folder / str(world) / f"rank{rank}.pt") for rank in range(world)]
        for world in scenarios.WORLDS
    }


def on_ranks(listed):
    """Run a test on each scenario of each number of ranks."""
    found = [(world, scenario) for world in scenarios.WORLDS for scenario in listed(world)]
    return pytest.mark.parametrize(
        "world, scenario", found, ids=["-".join(map(str, (world, *scenario))) for world, scenario in found]
    )


def relative(a, b):
    a, b = (torch.cat([w.double().flatten() for w in weights.values()]) for weights in (a, b))
    return float((a - b).norm() / b.norm())


def agreeing(results):
    """The ranks' results, which have the same weights to the bit, by one reduction per optimizer step."""
    for other in results[1:]:
        assert all(torch.equal(w, other["weights"][name]) for name, w in results[0]["weights"].items())
    assert [r["reductions"] for r in results] == [r["steps"] for r in results]
    return results


@pytest.mark.filterwarnings("ignore:R-Drop found no dropout")
@on_ranks(scenarios.scenarios)
def test_ranks_equal_one_process(ranks, world, scenario):
    method, kind, accumulation = scenario
    results = agreeing([rank[scenario] for rank in ranks[world]])
    if kind in ("noisy", "alternating", "of three") or (kind == "mixin" and method != "none"):
        assert all(r["terms"] and min(r["terms"]) > 0 for r in results)

    model = scenarios.MODELS[kind]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = scenarios.micro_batches(world)
    scenarios.trainer(model, method, batches, accumulation * world, device="cpu").run()
    after = {name: p.detach() for name, p in model.named_parameters()}
    assert relative(results[0]["weights"], after) < 1e-5
    assert relative(before, after) > 1e-3


@on_ranks(scenarios.with_noise)
def test_ranks_agree_under_noise(ranks, world, scenario):
    results = agreeing([rank[scenario] for rank in ranks[world]])
    before = {name: p.detach() for name, p in scenarios.MODELS[scenario[1]]().named_parameters()}
    assert relative(before, results[0]["weights"]) > 1e-3


@pytest.mark.parametrize("method", scenarios.CRASHES)
def test_a_rank_that_raises_ends_the_run_with_its_own_error(method, folder):
    assert (folder / method).read_text() == "failed"
    said = [(folder / f"{method}-{rank}").read_text() for rank in range(2)]
    assert "ArithmeticError: the model of the last rank broke" in said[1]
    assert not any("trained to the end" in each for each in said)


def test_every_rank_makes_the_repairs_and_can_do_what_they_are_for(folder):
    for rank in range(2):
        found = json.loads((folder / f"repairs{rank}.json").read_text())
        assert found["repaired"] == NEEDED
        assert found["left"] == {}


def test_the_program_of_the_page_trains_the_same_model_on_both_ranks(folder):
    found = [re.search(r"rank (\d): weights ([\d.]+)", (folder / f"page{rank}").read_text()) for rank in range(2)]
    assert [each[1] for each in found] == ["0", "1"]
    assert found[0][2] == found[1][2]
