"""Checks of arguments, in one wording: what was expected, what came, what to do."""

from __future__ import annotations

import math
import numbers
from functools import partial
from typing import Any, Callable

import torch

__all__ = [
    "Check",
    "at_least",
    "at_most",
    "check_arguments",
    "check_choice",
    "check_count",
    "check_flag",
    "check_inner_autocast",
    "check_name",
    "check_number",
    "check_positive",
    "optional",
]

#: raises ValueError if the value of the argument of this name is out of range
Check = Callable[[str, Any], None]


def check_number(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> None:
    """
    Refuse anything but a finite number in a range.

    :param name: the name of the argument.
    :param value: its value.
    :param positive: refuse 0 as well.
    :param most: the largest that is allowed.
    :raises ValueError: if it is out of range.
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < 0 or (positive and value == 0) or value > most:
        what = "a positive number" if positive else "a finite, non-negative number"
        if most < math.inf:
            what = f"a positive number of at most {most:g}" if positive else f"a number from 0 to {most:g}"
        raise ValueError(f"Expected `{name}` to be {what}, but got {value!r}.")


check_positive: Check = partial(check_number, positive=True)


def at_most(most: float) -> Check:
    """
    Return a check for a number from 0 to a bound.

    :param most: the bound.
    """
    return partial(check_number, most=most)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """
    Refuse anything but an integer of at least ``least``.

    :param name: the name of the argument.
    :param value: its value.
    :param least: the smallest that is allowed.
    :raises ValueError: if it is out of range.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected `{name}` to be an integer of at least {least}, but got {value!r}.")


def at_least(least: int) -> Check:
    """
    Return a check for an integer of at least ``least``.

    :param least: the smallest that is allowed.
    """
    return partial(check_count, least=least)


def optional(check: Check) -> Check:
    """
    Return a check that lets ``None`` pass.

    :param check: the check for all else.
    """
    return partial(_check_unless_none, check)


def _check_unless_none(check: Check, name: str, value: Any) -> None:
    if value is not None:
        check(name, value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    Refuse anything but the choices.

    :param name: the name of the argument.
    :param value: its value.
    :param choices: what it may be.
    :raises ValueError: if it is none of them.
    """
    if value not in choices:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(map(repr, choices))}, but got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """
    Refuse anything but True and False.

    :param name: the name of the argument.
    :param value: its value.
    :raises ValueError: if it is something else.
    """
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's is not Python's
        raise ValueError(f"Expected `{name}` to be True or False, but got {value!r}.")


def check_name(name: str, value: Any) -> None:
    """
    Refuse anything but a part of a name and None.

    :param name: the name of the argument.
    :param value: its value.
    :raises ValueError: if it is something else.
    """
    if not isinstance(value, (str, type(None))) or value == "":
        raise ValueError(f"Expected `{name}` to be a part of a name or None, but got {value!r}.")


def check_arguments(values: dict[str, Any], **checks: Check) -> None:
    """
    Check arguments that a function or a class without a class of arguments takes.

    :param values: by name.
    :param checks: by name; those of ``emb_name`` can be left out.
    :raises ValueError: if one is out of range.
    """
    for name, value in values.items():
        {"emb_name": check_name, **checks}[name](name, value)


def check_inner_autocast(name: str, value: Any) -> None:
    """
    Refuse any precision but bfloat16.

    :param name: the name of the argument.
    :param value: its value.
    :raises ValueError: if it is something else.
    """
    if value is not None and value is not torch.bfloat16:
        raise ValueError(
            f"Expected `{name}` to be None or torch.bfloat16, but got {value!r}. bfloat16 has the range of float32; in "
            "float16 small gradients would be 0."
        )
