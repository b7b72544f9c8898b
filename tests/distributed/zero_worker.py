"""
Ranks that train under DeepSpeed, stages 1 to 3 of ZeRO, with the step of docs/large_models.md.

    python zero_worker.py FOLDER

starts two. What the first finds goes to FOLDER/found.pt.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import deepspeed
import pages
import quick  # noqa: F401
import sharded
import torch
import torch.distributed as dist
from forked import launch
from torch import nn

from fastnlp_adv import ATTA, GradientPenalty
from fastnlp_adv.attacks import Attack

METHODS = [name for name in sharded.ALL if name not in ("smart bregman", "fgm of both")]


def attack_step():
    space = {}
    exec(pages.blocks("docs/large_models.md")[1], space)
    return space["attack_step"]


class Alone(nn.Module):
    """One process in the place of the engine: takes the gradient of all ranks' micro-batches."""

    def __init__(self, model, ranks):
        super().__init__()
        self.module, self.ranks, self.done = model, ranks, 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def forward(self, **batch):
        return self.module(**batch)

    def set_gradient_accumulation_boundary(self, last):
        """Nothing is to be told."""

    def backward(self, loss):
        (loss / self.ranks).backward()

    def step(self):
        self.done += 1
        if self.done % self.ranks == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()


def step(engine, method, batch):
    if method is None:
        engine.backward(engine(**batch)["loss"])
        engine.step()
    elif isinstance(method, Attack):
        if isinstance(method, ATTA):
            method.indices = range(4)
        attack_step()(engine, method, batch)
    else:
        # what a backward pass of its own begins at must not be the engine's
        objective = engine.module if isinstance(method, GradientPenalty) else engine
        inner = engine.module if getattr(method, "steps", 0) else engine
        with method.running():
            outputs = method(lambda batch: objective(**batch), batch, forward=lambda batch: inner(**batch))
        engine.backward(outputs["loss"])
        engine.step()


def train(engine, methods, micro_batches):
    for each in micro_batches:
        for method, batch in zip(methods, each, strict=True):
            step(engine, method, batch)


def wrapped(model, stage):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def weights(model):
    if not hasattr(next(model.parameters()), "ds_id"):
        return {name: p.detach().clone() for name, p in model.named_parameters()}
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def run(name, stage):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = sharded.Model(sharded.ALL[name][1]).float()
    engine = wrapped(model, stage)
    try:
        method = sharded.built(name, engine, rank)
    except ValueError as error:
        return {"refused": str(error)}
    train(engine, [method], [each[rank : rank + 1] for each in sharded.batches(ranks)])

    other = sharded.Model(sharded.ALL[name][1]).float()
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    alone = Alone(other, ranks)
    train(alone, [sharded.built(name, alone, each) for each in range(ranks)], sharded.batches(ranks))
    return {"weights": weights(model), "alone": weights(other), "before": before}


def main(folder):
    deepspeed.init_distributed("gloo", verbose=False)
    found = {(stage, name): run(name, stage) for stage in (1, 2, 3) for name in METHODS}
    if dist.get_rank() == 0:
        torch.save(found, Path(folder, "found.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    launch(main, sys.argv[1])
