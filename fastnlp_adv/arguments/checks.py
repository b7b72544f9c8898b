"""Checks of arguments, in one wording: what was expected, what came, what to do."""

from __future__ import annotations

import math
import numbers
from typing import Any, Callable

__all__ = [
    "Check",
    "at_least",
    "check_count",
    "check_flag",
    "check_fraction",
    "check_name",
    "check_number",
    "check_positive",
    "check_up_to_1",
    "must_be",
    "one_of",
]

#: raises ValueError if the value of the argument of this name is out of range
Check = Callable[[str, Any], None]


def must_be(what: str, test: Callable[[Any], bool]) -> Check:
    """
    Return a check that refuses what does not pass a test.

    :param what: what passes it, in words.
    :param test: tells whether a value passes.

    Example::

        >>> must_be("an even number", lambda value: value % 2 == 0)("steps", 3)
        Traceback (most recent call last):
        ValueError: Expected `steps` to be an even number, but got 3.
    """

    def check(name: str, value: Any) -> None:
        """
        Refuse a value that is out of range.

        :param name: the name of the argument.
        :param value: its value.
        :raises ValueError: if it is out of range.
        """
        if not test(value):
            raise ValueError(f"Expected `{name}` to be {what}, but got {value!r}.")

    return check


def one_of(choices: tuple[Any, ...]) -> Check:
    """
    Return a check that refuses anything but the choices.

    :param choices: what the argument may be.
    """
    return must_be(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def at_least(least: int) -> Check:
    """
    Return a check that refuses anything but an integer of at least ``least``.

    :param least: the smallest that is allowed.
    """
    return must_be(f"an integer of at least {least}", lambda value: _is(numbers.Integral, value) and value >= least)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is(numbers.Real, value) and math.isfinite(value)


check_number = must_be("a finite, non-negative number", lambda value: _is_finite(value) and value >= 0)
check_positive = must_be("a positive number", lambda value: _is_finite(value) and value > 0)
check_up_to_1 = must_be("a number from 0 to 1", lambda value: _is_finite(value) and 0 <= value <= 1)
check_fraction = must_be("a positive number of at most 1", lambda value: _is_finite(value) and 0 < value <= 1)
check_count = at_least(1)
# NumPy's bool_ is not Python's bool
check_flag = must_be("True or False", lambda value: type(value).__name__ in ("bool", "bool_"))
check_name = must_be(
    "a part of a name or None", lambda value: value is None or (isinstance(value, str) and value != "")
)
