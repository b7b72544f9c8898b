"""One rank whose model raises, on the last rank, in the given forward pass of the training. Started by torchrun."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

import scenarios


class Fragile(scenarios.Plain):
    forwards = 0

    def forward(self, input_ids, labels):
        self.forwards += 1
        if dist.get_rank() == dist.get_world_size() - 1 and self.forwards == int(sys.argv[2]):
            raise ArithmeticError("the model of the last rank broke")
        return super().forward(input_ids, labels)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    mine = scenarios.micro_batches(dist.get_world_size())[dist.get_rank() :: dist.get_world_size()]
    model = DistributedDataParallel(Fragile())
    scenarios.trainer(model, sys.argv[1], mine, 1, device=None, data_device="cpu").run()
    print("trained to the end")
