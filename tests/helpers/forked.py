"""Ranks as torchrun starts them, but forked, since each would take longer to import torch than to train."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401 - an optimizer imports it, in each rank anew if not here
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from launch import finish

RANKS = 2


def launch(function, *arguments, ranks=RANKS):
    """
    Run a function on each rank, and leave the process group that it has made.

    :raises ChildFailedError: if one of them fails.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"{function.__name__}-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, _run)(function, *arguments)


def _run(function, *arguments):
    function(*arguments)
    finish()
