"""Checks of arguments, in one wording: what was expected, what came, what to do."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["check_choice", "check_count", "check_flag", "check_number"]


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """
    Refuse what is no finite number of at least 0.

    :param name: what the argument is called.
    :param value: its value.
    :param positive: refuse 0 too.
    :raises ValueError: if it is out of range.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (positive and value == 0):
        kind = "a positive" if positive else "a finite, non-negative"
        raise ValueError(f"Expected `{name}` to be {kind} number, but got {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    Refuse what is no integer of at least ``least``.

    :param name: what the argument is called.
    :param value: its value.
    :param least: the smallest that is allowed.
    :raises ValueError: if it is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected `{name}` to be an integer of at least {least}, but got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    Refuse what is not among the choices.

    :param name: what the argument is called.
    :param value: its value.
    :param choices: what it may be.
    :raises ValueError: if it is none of them.
    """
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """
    Refuse what is neither True nor False.

    :param name: what the argument is called.
    :param value: its value.
    :raises ValueError: if it is something else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"Expected `{name}` to be True or False, but got {value!r}.")
