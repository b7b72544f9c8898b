"""The new files of the patches for fastNLP, imported as modules of the fastNLP that is installed."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from upstream import patches

FOLDER = "fastNLP/core/callbacks/torch_callbacks"
_files = tempfile.TemporaryDirectory()  # they stay: fastNLP reads the source of callbacks


def load(name):
    """Import a new file under the name that it has in fastNLP, which its relative imports need."""
    path = Path(_files.name, f"{name}.py")
    path.write_text(patches.new_files()[f"{FOLDER}/{name}.py"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{FOLDER.replace('/', '.')}.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_adversarial = load("torch_adversarial_callback")
_rdrop = load("torch_rdrop_callback")
TorchFGMCallback = _adversarial.TorchFGMCallback
TorchPGDCallback = _adversarial.TorchPGDCallback
TorchRDropCallback = _rdrop.TorchRDropCallback
RDropMixin = _rdrop.RDropMixin
