"""
Ranks that shard a model in every way that torch has, and train it with every method.

    python sharded_worker.py FOLDER

starts two ranks as torchrun does, but forked, since each would take longer to import torch than to train. What rank N
finds goes to FOLDER/rankN.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import sharded
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

RANKS = 2


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
    hooks = [hook for module in wrapped.modules() for hook in module._forward_hooks.values()]
    return {
        **found,
        "weights": sharded.full_weights(model, wrapped),
        "counts": {each: count / (2 * sharded.STEPS) for each, count in counts.items()},
        "norm": getattr(method, "perturbation_norm", None),
        "left": [repr(hook) for hook in hooks if "fastnlp_adv" in type(hook).__module__],
    }


def main(folder):
    dist.init_process_group("gloo")
    found = {}
    for engine, (wrap, _) in sharded.ENGINES.items():
        found.update({(engine, name): run(name, wrap) for name in sharded.ALL})
    for engine, wrap in sharded.MIXED.items():
        found.update({(engine, name): run(name, wrap) for name in ("none", "fgm sequence", "pgd")})
    torch.save(found, Path(folder, f"rank{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def launch(function, *arguments):
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"{function.__name__}-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, function)(*arguments)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    launch(main, sys.argv[1])
