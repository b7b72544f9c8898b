"""
Ranks that shard a model in every way that torch has, and train it with every method.

    python sharded_worker.py FOLDER

starts two forked ranks. What rank N finds goes to FOLDER/rankN.pt. Then two that run the program of
docs/large_models.md, and two that run examples/large_model.py; what they write goes to FOLDER/pageN and
FOLDER/exampleN.
"""

from __future__ import annotations

import runpy
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import pages
import quick  # noqa: F401
import scenarios
import sharded
import torch
import torch.distributed as dist
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from forked import RANKS, launch, run_program, write_to

from fastnlp_adv import RDropMixin, compat


def run(name, wrap):
    """Train in a plain loop; the weights, what was reduced and gathered per step, and what is left on the model."""
    rank = dist.get_rank()
    model = sharded.Model(sharded.ALL[name][1])
    wrapped = wrap(model)
    try:
        method = sharded.built(name, wrapped, rank)
    except ValueError as error:
        return {"refused": str(error)}
    found = {}
    if rank == 0 and method is not None:  # what one rank says to itself must not wait for the others
        found["says"] = method.describe()
    mine = [each[rank : rank + 1] for each in sharded.batches(RANKS)]
    with sharded.counting() as counts:
        sharded.train(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1), [method], mine)
    return {
        **found,
        "weights": sharded.full_weights(model, wrapped),
        "counts": {each: count / (2 * sharded.STEPS) for each, count in counts.items()},
        "norm": getattr(method, "perturbation_norm", None),
        "left": sharded.hooks_left(wrapped),
    }


class Mixed(RDropMixin, sharded.Model):
    """R-Drop inside the model, which a callback drives."""


def run_trainer(method, wrap, accumulation, kind=sharded.Model):
    """The same through fastNLP's Trainer."""
    model = kind(sharded.TRAINED[method])
    wrapped = wrap(model)
    mine = scenarios.micro_batches(RANKS)[dist.get_rank() :: RANKS]
    try:
        trainer = scenarios.trainer(
            wrapped, method, mine, accumulation, driver="torch_fsdp", device=None, data_device="cpu"
        )
    except ValueError as error:
        return {"refused": str(error)}
    with sharded.counting() as counts:
        trainer.run()
    steps = trainer.global_forward_batches // accumulation
    return {
        "weights": sharded.full_weights(model, wrapped),
        "counts": {each: count / steps for each, count in counts.items()},
        "left": sharded.hooks_left(wrapped),
    }


def run_example(folder):
    write_to(Path(folder, "example"))
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    runpy.run_path(str(pages.ROOT / "examples/large_model.py"), run_name="__main__")


def main(folder):
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    compat.repair()
    dist.init_process_group("gloo")
    found = {(engine, name): run(name, sharded.ENGINES[engine][0]) for engine, name in sharded.runs()}
    for engine, wrap in sharded.MIXED.items():
        found.update({(engine, name): run(name, wrap) for name in ("none", "fgm sequence", "pgd")})
    for engine, method, accumulation in sharded.trainings():
        wrap = sharded.ENGINES[engine][0]
        found["trainer", engine, method, accumulation] = run_trainer(method, wrap, accumulation)
    for method in ("fgm", "fgm + rdrop"):
        found["mixed", method] = run_trainer(method, sharded.ENGINES["fsdp"][0], 2, Mixed)
    torch.save(found, Path(folder, f"rank{dist.get_rank()}.pt"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    launch(main, sys.argv[1])
    launch(run_program, Path(sys.argv[1], "page"), pages.blocks("docs/large_models.md")[0])
    launch(run_example, sys.argv[1])
