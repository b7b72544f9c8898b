"""What differs between the versions of Python and torch that the package runs on. Nothing else asks for a version."""

from __future__ import annotations

import sys
from typing import Any, Callable, TypeVar

import torch
from torch import nn

__all__ = [
    "comes_of_reentrant_checkpoints",
    "compile_nothing_in",
    "has_compiled_parts",
    "refuse_compiled",
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
    # `torch.compiler` came with torch 2.1.
    compiler = getattr(torch, "compiler", None) or torch._dynamo
    return compiler.disable(function)


def has_compiled_parts(model: nn.Module) -> bool:
    """
    Tell whether ``torch.compile`` has wrapped a model or any module in it, or ``module.compile()`` has compiled its
    calls.

    :param model: the model.
    """
    # `nn.Module.compile` came with torch 2.1; in 2.0 there is only the wrapper.
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def refuse_compiled(model: nn.Module) -> None:
    """
    Refuse a compiled model where its lookups cannot be watched.

    :param model: the model.
    :raises ValueError: if any module in it is compiled, and torch is older than 2.1.
    """
    # torch 2.0 loses the hook's part of the graph when its compiler differentiates ahead of time, as its default does.
    if not hasattr(torch, "compiler") and has_compiled_parts(model):
        raise ValueError(
            f"Expected `model` not to be compiled on torch before 2.1, but got a compiled one on {torch.__version__}. "
            "Compile with torch 2.1 or later, or leave `torch.compile` out."
        )
