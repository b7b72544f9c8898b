"""
Ranks that hold whole models, in DistributedDataParallel.

    python worker.py FOLDER

starts forked ranks, two and then three, which run every scenario in their one process group: weights and counts of rank
N of M go to FOLDER/M/rankN.pt. Then two for each training that breaks, which write to FOLDER/METHOD-N, and how it ended
to FOLDER/METHOD; two that make the repairs, whose outcome goes to FOLDER/repairsN.json; and two that run the program of
docs/distributed.md, which write to FOLDER/pageN.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import pages
import quick  # noqa: F401
import scenarios
import torch
import torch.distributed as dist
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from forked import launch, run_program, write_to
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import repairs

TERMS = ("kl", "vat", "smart", "r3f", "gradient_penalty")


def counted(model, counts):
    """Count the gradient buckets that are reduced; small models have one."""

    def hook(state, bucket):
        counts.append(bucket.buffer().numel())
        future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    return model


def mine():
    return scenarios.micro_batches(dist.get_world_size())[dist.get_rank() :: dist.get_world_size()]


def run(method, kind, accumulation):
    counts = []
    model = scenarios.MODELS[kind]()
    wrapped = counted(DistributedDataParallel(model, find_unused_parameters="unused" in kind), counts)
    trainer = scenarios.trainer(wrapped, method, mine(), accumulation, device=None, data_device="cpu")
    trainer.run()
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "terms": [float(value) for name, value in trainer.state.get("adv", {}).items() if name in TERMS],
        "reductions": len(counts),
        "steps": trainer.global_forward_batches // accumulation,
    }


def begin():
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    dist.init_process_group("gloo")


def run_all(folder):
    begin()
    world = dist.get_world_size()
    results = {scenario: run(*scenario) for scenario in [*scenarios.scenarios(world), *scenarios.with_noise(world)]}
    torch.save(results, Path(folder, str(world), f"rank{dist.get_rank()}.pt"))


class Fragile(scenarios.Plain):
    def __init__(self, last_forward):
        super().__init__()
        self.forwards, self.last_forward = 0, last_forward

    def forward(self, input_ids, labels):
        self.forwards += 1
        if dist.get_rank() == dist.get_world_size() - 1 and self.forwards == self.last_forward:
            raise ArithmeticError("the model of the last rank broke")
        return super().forward(input_ids, labels)


def break_down(folder, method, last_forward):
    write_to(Path(folder, f"{method}-"))
    try:
        begin()
        model = DistributedDataParallel(Fragile(last_forward))
        scenarios.trainer(model, method, mine(), 1, device=None, data_device="cpu").run()
        print("trained to the end", flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise


def main(folder):
    for world in scenarios.WORLDS:
        Path(folder, str(world)).mkdir()
        launch(run_all, folder, ranks=world)
    for method, last_forward in scenarios.CRASHES.items():
        try:
            launch(break_down, folder, method, last_forward)
            ended = "well"
        except ChildFailedError:
            ended = "failed"
        Path(folder, method).write_text(ended)
    launch(repairs.run, folder)
    (block,) = pages.blocks("docs/distributed.md")
    with suppress(ChildFailedError):  # when all is done, torch's own threads now and then abort a process of gloo
        launch(run_program, Path(folder, "page"), block)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1])
