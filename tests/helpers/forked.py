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
#: of a page: freeing its model would wait for gloo's thread, which may wait for the interpreter's lock
NAMES = {}


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


def write_to(path):
    """Redirect the output of this rank to a file, with the rank at the end of its name."""
    with open(f"{path}{os.environ['RANK']}", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def run_program(path, program):
    """Run a program of a page on this rank."""
    from fastNLP.envs.set_env_on_import import set_env_on_import_torch

    write_to(path)
    set_env_on_import_torch()  # fastNLP was imported before there were ranks
    exec(compile(program, "page", "exec"), NAMES)
