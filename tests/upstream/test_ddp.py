"""The callbacks of the patches on two real processes: the weights of one process, one reduction per optimizer step."""

import sys
from pathlib import Path

import pytest
import torch
from processes import run

from tests.upstream import ddp_worker


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    done = run([sys.executable, Path(__file__).with_name("ddp_worker.py"), folder])
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("method, accumulation", ddp_worker.SCENARIOS)
def test_two_processes_equal_one(ranks, method, accumulation):
    (weights, reductions, steps), (others, *_) = (rank[method, accumulation] for rank in ranks)
    assert torch.equal(weights, others)
    assert reductions == steps == 8 // accumulation

    model = ddp_worker.build(method)
    before = ddp_worker.support.weights(model)
    expected, _ = ddp_worker.run(model, method, ddp_worker.micro_batches(), 2 * accumulation, device="cpu")
    assert (weights - expected).norm() < 1e-6 * expected.norm()
    assert (expected - before).norm() > 1e-3 * expected.norm()
