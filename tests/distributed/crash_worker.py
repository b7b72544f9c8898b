"""
Trainings whose model raises, on the last rank, in the given forward pass.

    python crash_worker.py FOLDER '[["pgd", 3], ...]'

starts two forked ranks for each. What a rank writes goes to FOLDER/<method>-<rank>, and how the run ended to
FOLDER/<method>.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import quick  # noqa: F401
import scenarios
import torch.distributed as dist
from fastNLP.envs.set_env_on_import import set_env_on_import_torch
from forked import launch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel


class Fragile(scenarios.Plain):
    def __init__(self, last_forward):
        super().__init__()
        self.forwards, self.last_forward = 0, last_forward

    def forward(self, input_ids, labels):
        self.forwards += 1
        if dist.get_rank() == dist.get_world_size() - 1 and self.forwards == self.last_forward:
            raise ArithmeticError("the model of the last rank broke")
        return super().forward(input_ids, labels)


def train(folder, method, last_forward):
    with open(Path(folder, f"{method}-{os.environ['RANK']}"), "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    try:
        dist.init_process_group("gloo")
        mine = scenarios.micro_batches(dist.get_world_size())[dist.get_rank() :: dist.get_world_size()]
        model = DistributedDataParallel(Fragile(last_forward))
        scenarios.trainer(model, method, mine, 1, device=None, data_device="cpu").run()
        print("trained to the end", flush=True)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise


def main(folder, trainings):
    warnings.simplefilter("ignore")
    for method, last_forward in trainings:
        try:
            launch(train, folder, method, last_forward)
            ended = "well"
        except ChildFailedError:
            ended = "failed"
        Path(folder, method).write_text(ended)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
