"""Differences between the versions of torch that the package runs on. No other module asks for a version."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

_Function = TypeVar("_Function", bound=Callable[..., Any])


def comes_of_reentrant_checkpoints(error: RuntimeError) -> bool:
    """Return whether torch raised because a gradient was requested through a reentrant checkpoint."""
    # Before torch 2.3 the message does not name the argument.
    return any(text in str(error) for text in ("use_reentrant=True", "Checkpointing is not compatible with .grad()"))


def compile_nothing_in(function: _Function) -> _Function:
    """Return the function, outside the graph of a compiled model that calls it; itself if nothing is compiled."""
    # The import of the compiler takes seconds, and is made when something is compiled.
    if "torch._dynamo" not in sys.modules:
        return function
    kept_out: _Function = torch.compiler.disable(function)
    return kept_out


def has_compiled_parts(model: nn.Module) -> bool:
    """Return whether the model, or any module in it, is compiled."""
    # `torch.compile` wraps a module, `module.compile()` leaves it in place.
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())
