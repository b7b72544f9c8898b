"""Repairs of fastNLP's driver for ``FullyShardedDataParallel``, on torch 2.6 and later."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fastNLP.core.drivers.torch_driver.torch_fsdp import TorchFSDPDriver
from fastNLP.core.drivers.torch_driver.utils import DummyGradScaler, _DDPWrappingModel
from fastNLP.envs import (
    FASTNLP_BACKEND_LAUNCH,
    FASTNLP_CHECKPOINT_FILENAME,
    FASTNLP_DISTRIBUTED_CHECK,
    FASTNLP_MODEL_FILENAME,
    rank_zero_call,
)
from torch import nn
from torch.distributed import fsdp

from .repairs import raises, replaces, where

#: whether torch shards as these repairs expect, on a CPU too
SHARDS = hasattr(fsdp, "fully_shard")
state_dict: Any = importlib.import_module("torch.distributed.checkpoint.state_dict") if SHARDS else None

# The package has a function of this name too, which hides the module.
_choice: Any = importlib.import_module("fastNLP.core.drivers.torch_driver.initialize_torch_driver")


_wrapped = SimpleNamespace(model=SimpleNamespace(module=nn.Linear(1, 1)))


@replaces(
    TorchFSDPDriver, "unwrap_model", lambda: SHARDS and raises(AttributeError, TorchFSDPDriver.unwrap_model, _wrapped)
)
def fsdp_unwrap(original: Any, self: Any) -> nn.Module:
    """Let the driver find the model inside ``FullyShardedDataParallel``, without which no Trainer can be built.

    It looks for a second wrapper, which torch 1 had and torch 2 has not.
    """
    module: Any = self.model.module
    return module.model if isinstance(module, _DDPWrappingModel) else module


def _takes_another_driver() -> bool:
    # The environment of a rank under torchrun, whose process group fastNLP would make.
    found = {FASTNLP_BACKEND_LAUNCH: "1", "LOCAL_RANK": "0", FASTNLP_DISTRIBUTED_CHECK: "1"}
    before = os.environ.copy()
    try:
        os.environ.update(found)
        return not isinstance(_choice.initialize_torch_driver("torch_fsdp", None, nn.Linear(1, 1)), TorchFSDPDriver)
    finally:
        os.environ.clear()
        os.environ.update(before)


@replaces(_choice, "initialize_torch_driver", lambda: SHARDS and _takes_another_driver())
def fsdp_launch(original: Any, driver: str, device: Any, model: nn.Module, **kwargs: Any) -> Any:
    """Let ``Trainer(driver="torch_fsdp")`` shard when torchrun started the process.

    fastNLP then takes its driver for DistributedDataParallel, and refuses a model in ``FullyShardedDataParallel``.
    """
    if driver != "torch_fsdp" or FASTNLP_BACKEND_LAUNCH not in os.environ:
        return original(driver, device, model, **kwargs)
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return TorchFSDPDriver(model, own, is_pull_by_torch_run=True, **kwargs)


# An OSError would mean that it looks for the file.
@where(lambda: SHARDS and raises(RuntimeError, TorchFSDPDriver.load_checkpoint, None, Path(os.devnull), None))
def fsdp_checkpoints() -> None:
    """Save and resume trainings on the driver, and save and load models that are whole.

    fastNLP refuses checkpoints there, and saves a model as shards, one file per rank, that torch 2.6 and later do not
    load. Now all ranks gather, and the first writes the files of a training in one process: ``save_on_rank0`` and
    ``load_on_rank0`` no longer matter. Every rank reads the whole file.
    """
    whole = state_dict.StateDictOptions(full_state_dict=True)

    def gathered(driver: TorchFSDPDriver) -> Any:
        # From a CPU to the CPU torch makes no copy, and reads freed memory.
        on_device = next(driver.model.parameters()).device.type != "cpu"
        return state_dict.StateDictOptions(full_state_dict=True, cpu_offload=on_device)

    def check(only_state_dict: bool) -> None:
        if not only_state_dict:
            raise ValueError(
                "Expected `only_state_dict` to be True for a sharded model, but got False. A rank has no whole model "
                "that it could save; save its weights."
            )

    def save_model(self: Any, filepath: Any, only_state_dict: bool = True, **kwargs: Any) -> None:
        check(only_state_dict)
        rank_zero_call(torch.save)(state_dict.get_model_state_dict(self.model, options=gathered(self)), filepath)

    def load_model(self: Any, filepath: Any, only_state_dict: bool = True, **kwargs: Any) -> None:
        check(only_state_dict)
        state_dict.set_model_state_dict(self.model, torch.load(filepath, map_location="cpu"), options=whole)

    def get_optimizer_state(self: Any) -> dict[str, Any]:
        get, options = state_dict.get_optimizer_state_dict, gathered(self)
        return {f"optimizer{i}": get(self.model, each, options=options) for i, each in enumerate(self.optimizers)}

    def load_optimizer_state(self: Any, states: dict[str, Any]) -> None:
        for i, each in enumerate(self.optimizers):
            state_dict.set_optimizer_state_dict(self.model, each, states[f"optimizer{i}"], options=whole)

    def save_checkpoint(
        self: Any,
        folder: Any,
        states: dict[str, Any],
        dataloader: Any,
        only_state_dict: bool = True,
        should_save_model: bool = True,
        **kwargs: Any,
    ) -> None:
        rank_zero_call(os.makedirs)(folder, exist_ok=True)
        if should_save_model:
            self.save_model(Path(folder, FASTNLP_MODEL_FILENAME), only_state_dict)
        states["sampler_states"] = self.get_sampler_state(dataloader, states.pop("num_consumed_batches"))
        states["optimizers_state_dict"] = self.get_optimizer_state()
        if not isinstance(self.grad_scaler, DummyGradScaler):
            states["grad_scaler_state_dict"] = self.grad_scaler.state_dict()
        rank_zero_call(torch.save)(states, Path(folder, FASTNLP_CHECKPOINT_FILENAME))

    for method in (save_model, load_model, get_optimizer_state, load_optimizer_state, save_checkpoint):
        setattr(TorchFSDPDriver, method.__name__, method)
    del TorchFSDPDriver.load_checkpoint  # the inherited one works on the methods above
