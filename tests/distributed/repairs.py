"""One rank that makes the repairs and runs their scenarios in its process group."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch
import torch.distributed as dist
from fastNLP import DataSet, TorchDataLoader, Trainer, prepare_torch_dataloader
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from torch.nn.parallel import DistributedDataParallel

from fastnlp_adv import compat
from tests import test_compat as alone


class Bag(alone.Bag):
    def forward(self, tokens, target):
        return self.train_step(tokens, target)


def make_trainer(dataloader, seed=0, **options):
    torch.manual_seed(seed)
    model = DistributedDataParallel(Bag())
    return Trainer(
        model=model,
        optimizers=torch.optim.Adam(model.parameters(), lr=0.1),
        train_dataloader=dataloader,
        driver="torch",
        device=None,
        data_device="cpu",
        progress_bar=None,
        use_dist_sampler=isinstance(dataloader, TorchDataLoader),
        **{"n_epochs": 2, **options},
    )


def loader(**options):
    """As many batches on each rank as one process has of the data."""
    rows = {name: column * dist.get_world_size() for name, column in alone.ROWS.items()}
    return prepare_torch_dataloader(DataSet(rows), batch_size=4, **options)


def shared(folder):
    """A new folder that all ranks take for the same, in the place of the one that a process makes for itself."""
    numbers = iter(range(1000))

    @contextlib.contextmanager
    def make():
        made = Path(folder, f"shared{next(numbers)}")
        made.mkdir(exist_ok=True)
        dist.barrier()
        yield str(made)
        dist.barrier()

    return make


def run(folder):
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    repaired = compat.repair()  # as the examples do, before there is a process group
    dist.init_process_group("gloo")
    alone.make_trainer, alone.loader, alone.TemporaryDirectory = make_trainer, loader, shared(folder)
    left = alone.failures(alone.SCENARIOS)
    Path(folder, f"repairs{dist.get_rank()}.json").write_text(json.dumps({"repaired": repaired, "left": left}))
