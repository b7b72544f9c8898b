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

import scenarios
import support
import torch
import torch.distributed as dist
from fastNLP import Trainer
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from forked import launch
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


class Mixed(patched.RDropMixin, scenarios.Alternating):
    """R-Drop inside the model, whose ``forward`` fastNLP calls."""

    def train_step(self, input_ids, labels):
        return scenarios.Alternating.forward(self, input_ids, labels)

    def forward(self, input_ids, labels):
        return self.train_step(input_ids, labels)


def build(method):
    """A model whose rows or forwards differ without dropout, which ranks draw differently."""
    return Mixed() if "mixin" in method else scenarios.MODELS[scenarios.differing(method)]()


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

        model = DistributedDataParallel(build(method))
        model.register_comm_hook(None, count)
        trained, steps = run(model, method, mine, accumulation, device=None, data_device="cpu")
        results[method, accumulation] = trained, len(reductions), steps
    torch.save(results, Path(folder, f"rank{dist.get_rank()}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    launch(main, sys.argv[1])
