"""
Run a Trainer in one process, or in each process that torchrun starts.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def is_first() -> bool:
    """
    :return: whether this process is the one that prints and writes files.
    """
    return int(os.environ.get("RANK", 0)) == 0


def place(model: nn.Module, device: str) -> tuple[nn.Module, dict[str, Any]]:
    """
    Prepare a model for the processes. On GPUs fastNLP makes the process group and wraps the model. On CPUs this
    function does, and fastNLP calls the model's ``forward`` in training and in evaluation.

    :param model: the model.
    :param device: the device, as typed.
    :return: the model to train, and the Trainer's arguments for the device.
    """
    if not dist.is_torchelastic_launched():
        return model, {"device": device}
    if device.startswith("cuda"):
        return model, {"device": None}
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return DistributedDataParallel(model), {"device": None, "data_device": device, "use_dist_sampler": True}


def finish() -> None:
    """
    Leave the process group, if there is one, and end its threads. An interpreter that exits before them may abort.
    """
    if dist.is_initialized():
        dist.barrier()
        # Gloo's thread needs the interpreter's lock to free its last work. The next lines hold it until it has ended.
        time.sleep(0.1)
        gc.collect()  # a Trainer is a reference cycle: until it is collected, its model keeps the group alive
        dist.destroy_process_group()
