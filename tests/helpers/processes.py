"""Programs in processes of their own."""

from __future__ import annotations

import subprocess
import sys

HANGS = 1500  # seconds: no machine is that busy


def run(command, **options):
    """Run a command to its end, whatever that is, and return it with what it wrote."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=HANGS, check=False, **options)


def torchrun(script, world, *arguments, **options):
    """Run a script in several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    return run([*command, script, *arguments], **options)
