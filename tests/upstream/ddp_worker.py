"""
Two ranks that train with the callbacks of the patches.

    python ddp_worker.py FOLDER

forks them. What rank N finds, weights and counts, goes to FOLDER/rankN.pt.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import support
import torch
import torch.distributed as dist
from fastNLP import Trainer
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from forked import launch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from tests.upstream import patched

METHODS = {
    "plain": list,
    "fgm": lambda: [patched.TorchFGMCallback()],
    "pgd": lambda: [patched.TorchPGDCallback()],
    "rdrop concat": lambda: [patched.TorchRDropCallback()],
    "rdrop two_pass": lambda: [patched.TorchRDropCallback(mode="two_pass")],
    "pgd and rdrop two_pass": lambda: [patched.TorchPGDCallback(), patched.TorchRDropCallback(mode="two_pass")],
    "mixin": list,
    "fgm and mixin": lambda: [patched.TorchFGMCallback()],
}
SCENARIOS = [*((method, 2) for method in METHODS), ("plain", 1), ("pgd and rdrop two_pass", 1)]


class Uneven(support.Classifier):
    """Without dropout, which ranks draw differently, the rows of a batch still differ, and two forwards if asked."""

    def __init__(self, alternates):
        super().__init__(dropout=0.0)
        self.alternates = alternates
        self.calls = 0

    def train_step(self, input_ids, labels):
        self.calls += self.alternates
        pred = self(input_ids) * torch.linspace(1.0, 0.5, len(labels)).unsqueeze(-1) / (1 + self.calls % 2)
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


class Mixed(patched.RDropMixin, Uneven):
    """R-Drop inside the model."""


class Wrapped(nn.Module):
    """A model whose ``forward`` is its training step, as fastNLP wants it inside DistributedDataParallel."""

    def __init__(self, method):
        super().__init__()
        self.inner = Mixed(True) if "mixin" in method else Uneven("two_pass" in method)

    def forward(self, input_ids, labels):
        return self.inner.train_step(input_ids, labels)


def run(model, method, batches, accumulation, **kwargs):
    """Train for two epochs on these micro-batches in this order."""
    bare = getattr(model, "module", model)
    trainer = Trainer(
        model=model,
        driver="torch",
        train_dataloader=DataLoader(batches, batch_size=None),
        optimizers=torch.optim.SGD(bare.parameters(), lr=0.05),
        n_epochs=2,
        callbacks=METHODS[method](),
        accumulation_steps=accumulation,
        progress_bar=None,
        use_dist_sampler=False,
        **kwargs,
    )
    trainer.run()
    return support.weights(bare), trainer.global_forward_batches // accumulation


def micro_batches():
    data = support.samples(32, seed=3)
    return [support.collate(data[i : i + 4]) for i in range(0, len(data), 4)]


def main(folder):
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    dist.init_process_group("gloo")
    mine = micro_batches()[dist.get_rank() :: dist.get_world_size()]
    results = {}
    for method, accumulation in SCENARIOS:
        reductions = []

        def count(state, bucket, reductions=reductions):
            reductions.append(1)
            future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
            return future.then(lambda done: done.value()[0])

        model = DistributedDataParallel(Wrapped(method))
        model.register_comm_hook(None, count)
        trained, steps = run(model, method, mine, accumulation, device=None, data_device="cpu")
        results[method, accumulation] = trained, len(reductions), steps
    torch.save(results, Path(folder, f"rank{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    launch(main, sys.argv[1])
