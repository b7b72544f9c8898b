"""What regularizers measure, handed to whoever logs it. Only what is noted here is ours: a model may use any name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

__all__ = ["note", "noting"]

_listeners: list[dict[str, Tensor]] = []


def note(name: str, value: Tensor) -> Tensor:
    """
    Note a term of the loss.

    :param name: its name.
    :param value: the term, unweighted; a tensor of no dimensions.
    :return: the value, detached.
    """
    value = value.detach()
    if _listeners:
        _listeners[-1][name] = value
    return value


@contextmanager
def noting() -> Iterator[dict[str, Tensor]]:
    """
    Collect what is noted.

    :return: the terms by name, filled as they come.

    Example::

        >>> import torch
        >>> with noting() as terms:
        ...     value = note("kl", torch.tensor(0.5))
        >>> terms
        {'kl': tensor(0.5000)}
    """
    terms: dict[str, Tensor] = {}
    _listeners.append(terms)
    try:
        yield terms
    finally:
        _listeners.pop()
