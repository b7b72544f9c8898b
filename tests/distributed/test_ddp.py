"""Several real processes against one: the same weights, the same on each rank, one reduction per optimizer step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import scenarios
import torch
from processes import run, torchrun

HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"ddp{request.param}")
    done = torchrun(HERE / "worker.py", request.param, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


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
@pytest.mark.parametrize("scenario", list(scenarios.scenarios()), ids=lambda s: "-".join(map(str, s)))
def test_ranks_equal_one_process(ranks, scenario):
    method, kind, accumulation = scenario
    results = agreeing([rank[scenario] for rank in ranks])
    if kind in ("noisy", "alternating", "of three") or (kind == "mixin" and method != "none"):
        assert all(r["terms"] and min(r["terms"]) > 0 for r in results)

    model = scenarios.MODELS[kind]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = scenarios.micro_batches(len(ranks))
    scenarios.trainer(model, method, batches, accumulation * len(ranks), device="cpu").run()
    after = {name: p.detach() for name, p in model.named_parameters()}
    assert relative(results[0]["weights"], after) < 1e-5
    assert relative(before, after) > 1e-3


@pytest.mark.parametrize("scenario", list(scenarios.with_noise()), ids=lambda s: "-".join(map(str, s)))
def test_ranks_agree_under_noise(ranks, scenario):
    results = agreeing([rank[scenario] for rank in ranks])
    before = {name: p.detach() for name, p in scenarios.MODELS[scenario[1]]().named_parameters()}
    assert relative(before, results[0]["weights"]) > 1e-3


CRASHES = [("pgd", 3), ("fgm + rdrop", 2)]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashed")
    done = run([sys.executable, HERE / "crash_worker.py", folder, json.dumps(CRASHES)])
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("method", [method for method, _ in CRASHES])
def test_a_rank_that_raises_ends_the_run_with_its_own_error(method, crashed):
    assert (crashed / method).read_text() == "failed"
    said = [(crashed / f"{method}-{rank}").read_text() for rank in range(2)]
    assert "ArithmeticError: the model of the last rank broke" in said[1]
    assert not any("trained to the end" in each for each in said)
