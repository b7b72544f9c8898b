"""Models that are sharded over real processes, against one process that holds them whole."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest
import support
import torch
from processes import run
from references import on_positions
from torch import nn
from torch.nn.functional import cross_entropy

HERE = Path(__file__).parent

if support.TORCH < (2, 6):
    pytest.skip("torch shards on the CPU, and has `fully_shard`, from 2.6 on", allow_module_level=True)

import scenarios  # noqa: E402
import sharded  # noqa: E402
from sharded import norm_of_difference  # noqa: E402


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    done = run([sys.executable, HERE / "sharded_worker.py", folder])
    assert done.returncode == 0, done.stderr[-4000:]
    return [{**torch.load(folder / f"rank{rank}.pt"), "folder": folder} for rank in range(2)]


@functools.cache
def alone(method):
    return sharded.alone(method, 2)


def trained(ranks, engine, method):
    """The first rank's result, after both were found to have the same weights and no hook."""
    first, second = (rank[engine, method] for rank in ranks)
    assert all(torch.equal(first["weights"][name], w) for name, w in second["weights"].items())
    assert first["left"] == second["left"] == []
    return first


@pytest.mark.filterwarnings("ignore:.*are not looked up")
@pytest.mark.parametrize("engine, method", list(sharded.runs()))
def test_ranks_equal_one_process(ranks, engine, method):
    if engine != "ddp" and method in sharded.WHOLE:
        for rank in ranks:
            said = rank[engine, method]["refused"]
            # a flat parameter has no names of those in it, so there is nothing that `emb_name` could match
            unnamed = "flat" in engine and "emb_name" in said
            assert said.startswith("Expected ") and ("of which a process holds a shard" in said or unnamed)
        return
    weights, before = alone(method)
    moved = norm_of_difference(weights, before)
    assert moved > 1e-3
    assert norm_of_difference(trained(ranks, engine, method)["weights"], weights) < 1e-6 * moved


@pytest.mark.parametrize("method", [name for name in sharded.METHODS if name != "none"])
def test_a_method_makes_a_difference(method):
    """Without it, weights that are equal would say little."""
    weights, before = alone(method)
    assert norm_of_difference(weights, alone("none")[0]) > 1e-4 * norm_of_difference(weights, before)


@pytest.mark.parametrize(
    "engine, method", [run for run in sharded.runs() if run[0] != "ddp" and run[1] in sharded.METHODS]
)
def test_gradients_are_reduced_once_per_pass_that_trains(ranks, engine, method):
    """And weights gathered as often as in so many passes of plain training."""
    counts = trained(ranks, engine, method)["counts"]
    parts = sharded.ENGINES[engine][1]
    gathered = "allgather" if "fsdp" in engine else "allgather_base"
    assert counts["reduce_scatter_base"] == parts * sharded.REDUCTIONS.get(method, 1)
    if method == "rdrop two_pass":
        assert counts[gathered] == (3 * parts - 2 if "fsdp" in engine else 3 * parts)
    elif method in sharded.GATHERED:
        assert counts[gathered] == (2 * parts - 1) * sharded.GATHERED[method]


@pytest.mark.parametrize("engine", sharded.SHARDED)
def test_names_are_those_of_the_bare_model(ranks, engine):
    """A shard has no mean length of its rows, and one rank that asked for it would wait for the others."""
    assert ranks[0][engine, "fgm"]["says"] == (
        "FGM perturbs `words.weight` (50 x 8, sharded): epsilon 1, shared by the micro-batch"
    )


#: 2.8 adds the ranks' gradients up instead of averaging them, without any method too; 2.13 is right
AVERAGES = support.since_torch(2, 13, "`fully_shard` in bfloat16 averages gradients on the CPU")


@pytest.mark.parametrize("engine", [pytest.param(each, marks=[AVERAGES] * ("fully" in each)) for each in sharded.MIXED])
@pytest.mark.parametrize("method", ["fgm sequence", "pgd"])
def test_in_bfloat16_the_ball_keeps_its_radius(ranks, engine, method):
    found = trained(ranks, engine, method)
    radius = 2.0 if method == "fgm sequence" else 1.0  # of four examples, or of the micro-batch
    assert float(found["norm"]) == pytest.approx(radius, rel=1e-5)
    weights, before = alone(method)
    off = norm_of_difference({n: w.double() for n, w in found["weights"].items()}, weights)
    assert off < 0.1 * norm_of_difference(alone("none")[0], weights)
    assert off < 0.05 * norm_of_difference(weights, before)


@functools.cache
def trained_alone(method, accumulation):
    model = sharded.Model(sharded.TRAINED[method])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scenarios.trainer(model, method, scenarios.micro_batches(2), 2 * accumulation, device="cpu").run()
    return {name: p.detach() for name, p in model.named_parameters()}, before


@pytest.mark.parametrize("engine, method, accumulation", list(sharded.trainings()))
def test_trainer_on_ranks_equals_one_process(ranks, engine, method, accumulation):
    first, second = (rank["trainer", engine, method, accumulation] for rank in ranks)
    if method == "awp":
        assert first["refused"].startswith("Expected AWP")
        return
    assert all(torch.equal(first["weights"][name], w) for name, w in second["weights"].items())
    assert first["left"] == second["left"] == []
    weights, before = trained_alone(method, accumulation)
    moved = norm_of_difference(weights, before)
    assert moved > 1e-3
    assert norm_of_difference(first["weights"], weights) < 1e-6 * moved

    parts, passes = sharded.ENGINES[engine][1], sharded.TRAINER_REDUCTIONS.get(method, 1)
    # fastNLP's own training reduces once per optimizer step, and keeps the gradients of the whole model until then
    batches = 1 if method == "none" else accumulation
    assert first["counts"]["reduce_scatter_base"] == parts * passes * batches


def test_r_drop_inside_the_model_is_driven_by_the_callback(ranks):
    """Alone it would not run, since a wrapped model is called by its `forward`."""
    assert "add `RDropCallback()`" in ranks[0]["mixed", "fgm"]["refused"]
    bare = ranks[0]["trainer", "fsdp", "fgm + rdrop", 2]["weights"]
    assert all(torch.equal(weight, bare[name]) for name, weight in ranks[0]["mixed", "fgm + rdrop"]["weights"].items())


def said(ranks, name):
    return [(ranks[0]["folder"] / f"{name}{rank}").read_text() for rank in range(2)]


def test_the_program_of_the_page_trains_the_same_model_on_both_ranks(ranks):
    found = [re.search(r"rank (\d): loss [\d.]+, weights ([\d.]+)", each) for each in said(ranks, "page")]
    assert [each[1] for each in found] == ["0", "1"]
    torch.manual_seed(0)
    words, tanh = nn.Embedding(100, 32), nn.Sequential(nn.Linear(32, 32), nn.Tanh())
    model = nn.Sequential(words, tanh, nn.Flatten(), nn.Linear(256, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = nn.utils.parameters_to_vector(model.parameters()).norm()
    for seed in range(10):
        words = torch.randint(0, 100, (32, 8), generator=torch.Generator().manual_seed(seed))

        def loss_from(model, embedded, words=words):
            return cross_entropy(model[1:](embedded), (words[:, 0] < 50).long())

        grads = on_positions(
            model, words, loss_from, lambda model: model[0], per_token=False, steps=[0.5] * 3, radius=1.0
        )
        for name, param in model.named_parameters():
            param.grad = grads[name]
        optimizer.step()
    after = nn.utils.parameters_to_vector(model.parameters()).norm()
    assert abs(after - before) > 0.01
    assert [float(each[2]) for each in found] == pytest.approx([after.item()] * 2, abs=3e-4)


def test_the_example_learns_and_each_rank_holds_half_of_the_model(ranks):
    pattern = r"rank (\d): accuracy ([\d.]+), holds (\d+) of (\d+) numbers"
    found = [re.search(pattern, each) for each in said(ranks, "example")]
    assert [each[1] for each in found] == ["0", "1"]
    assert found[0][2] == found[1][2] and float(found[0][2]) > 0.65
    held = [int(each[3]) for each in found]
    assert sum(held) >= int(found[0][4]) and max(held) < 0.51 * int(found[0][4])
