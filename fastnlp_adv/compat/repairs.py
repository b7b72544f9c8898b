"""What a repair is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["REPAIRS", "Repair", "raises", "where"]


class Repair:
    """One patch of fastNLP, made at most once, and only where its fault shows.

    :param patch: a function that repairs the fault; its name is the name of the repair.
    :param fault: tells whether the fault is there, by trying what the user would do.
    """

    def __init__(self, patch: Callable[[], None], fault: Callable[[], bool]) -> None:
        functools.update_wrapper(self, patch)
        self.name = patch.__name__
        self.in_force = False
        self._patch = patch
        self._fault = fault

    def __call__(self) -> bool:
        """Make the repair if it is needed.

        :return: whether the repair is in force, made by this call or by an earlier one.
        """
        if not self.in_force and self._fault():
            self._patch()
            self.in_force = True
        return self.in_force


REPAIRS: list[Repair] = []


def where(fault: Callable[[], bool]) -> Callable[[Callable[[], None]], Repair]:
    """Turn the decorated patch into a repair, made where ``fault()`` is true.

    :param fault: tells whether the fault is there, by trying what the user would do.
    :return: a decorator, which lists the repair in ``REPAIRS``.
    """

    def register(patch: Callable[[], None]) -> Repair:
        REPAIRS.append(Repair(patch, fault))
        return REPAIRS[-1]

    return register


def raises(error: type[Exception], call: Callable[[], Any]) -> bool:
    """Tell whether a call ends in an error.

    :param error: the error; any other is passed on.
    :param call: what to call, without arguments.
    :return: whether it raised ``error``.
    """
    try:
        call()
    except error:
        return True
    return False
