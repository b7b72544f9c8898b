"""One rank: runs every scenario in the one process group, and writes weights and counts. Started by torchrun."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

import quick  # noqa: F401
import scenarios

TERMS = ("kl", "vat", "smart", "r3f", "gradient_penalty")


def counted(model, counts):
    """Count the gradient buckets that are reduced; small models have one."""

    def hook(state, bucket):
        counts.append(bucket.buffer().numel())
        future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    return model


def run(method, kind, accumulation):
    counts = []
    model = scenarios.MODELS[kind]()
    wrapped = counted(DistributedDataParallel(model, find_unused_parameters=kind == "unused"), counts)
    mine = scenarios.micro_batches(dist.get_world_size())[dist.get_rank() :: dist.get_world_size()]
    trainer = scenarios.trainer(wrapped, method, mine, accumulation, device=None, data_device="cpu")
    trainer.run()
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "terms": [float(value) for name, value in trainer.state.get("adv", {}).items() if name in TERMS],
        "reductions": len(counts),
        "steps": trainer.global_forward_batches // accumulation,
    }


def main(folder):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    results = {scenario: run(*scenario) for scenario in [*scenarios.scenarios(), *scenarios.with_noise()]}
    torch.save(results, Path(folder, f"rank{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
