"""What differs between the versions of torch that the package runs on. Nothing else asks for a version."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = [
    "comes_of_reentrant_checkpoints",
    "compile_nothing_in",
    "has_compiled_parts",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def comes_of_reentrant_checkpoints(error: RuntimeError) -> bool:
    """
    Tell whether torch refused a gradient because a checkpoint is reentrant.

    :param error: what it raised.
    """
    # Before torch 2.3 the message does not name the argument.
    return any(text in str(error) for text in ("use_reentrant=True", "Checkpointing is not compatible with .grad()"))


def compile_nothing_in(function: _Function) -> _Function:
    """
    Keep ``torch.compile`` out of a function that a compiled model calls: the graph breaks there.

    :param function: what depends on more than its arguments.
    :return: the function to call in its place; itself as long as nothing has been compiled.
    """
    # The import of the compiler takes seconds, and whoever compiles has made it.
    if "torch._dynamo" not in sys.modules:
        return function
    kept_out: _Function = torch.compiler.disable(function)
    return kept_out


def has_compiled_parts(model: nn.Module) -> bool:
    """
    Tell whether ``torch.compile`` has wrapped a model or any module in it, or ``module.compile()`` has compiled its
    calls.

    :param model: the model.
    """
    # `torch.compile` wraps a module, `module.compile()` leaves it in place.
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())
