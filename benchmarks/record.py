"""What a sweep found, as a JSON file: all times, the settings, the machine in words, and how to measure it again."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.sweeps import Sweep

Record = dict[str, Any]
PACKAGES = ("torch", "fastNLP", "transformers", "fastnlp_adv")


def record(sweep: Sweep, points: list[dict], *, command: str, device: str) -> Record:
    """Everything about a sweep but its points comes from the sweep itself."""
    about = {k: v for k, v in asdict(sweep).items() if k in ("name", "kind", "passes_only")}
    return {
        **about,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "points": points,
    }


def save(found: Record, folder: Path) -> Path:
    """One file a sweep; it is there as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['name']}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_rounded(found), indent=1) + "\n")
    partial.replace(path)
    return path


def load(folder: Path, names: list[str]) -> dict[str, Record]:
    """The sweeps that are there, in the given order."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def machine(device: str) -> str:
    """The machine in words, without a name or an address."""
    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    text = f"{cores} CPU cores{_model()}, {threads} thread{'s' * (threads > 1)}, {_memory()} GiB of memory"
    return f"{torch.cuda.get_device_name()}; {text}" if device != "cpu" else text


def _model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return f" ({', '.join(sorted(names))})" if names else ""


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _rounded(value: Any) -> Any:
    """Times to the microsecond tenth: what is beyond says nothing and fills files."""
    if isinstance(value, float):
        return round(value, 7)
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value
