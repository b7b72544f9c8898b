"""The peak of memory of a few steps, each variant in a process of its own, so that none finds what another left."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.setting import Setting

ROOT = Path(__file__).parents[1]
STEPS = 3
MIB = 2**20


def peak(variant: str, setting: Setting) -> float:
    """MiB at the highest: resident memory on the CPU, what the allocator gave out on a GPU."""
    command = [sys.executable, "-m", "benchmarks.memory", variant, json.dumps(asdict(setting))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"Expected {variant!r} to run, but its process ended with:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def measure_here(variant: str, setting: Setting) -> float:
    """The same in this process, which should be a new one."""
    from benchmarks.timing import Stepper
    from benchmarks.variants import BY_NAME

    stepper = Stepper(setting.model(), BY_NAME[variant], setting)
    for _ in range(STEPS):
        stepper.prepare()
        stepper.step()
    return allocated() if setting.device != "cpu" else resident()


def resident() -> float:
    """The highest resident memory of this process. Not `ru_maxrss`: Linux counts there what the parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("Expected the kernel to tell the resident peak (VmHWM in /proc/self/status), but it does not.")


def allocated() -> float:
    """The most that the GPU's allocator has given out at once."""
    return torch.cuda.max_memory_allocated() / MIB


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps({"mib": measure_here(sys.argv[1], Setting(**json.loads(sys.argv[2])))}))
