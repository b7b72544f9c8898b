"""The arguments of methods and callbacks: each written once, with its type, default, check and description."""

from . import shared
from .checks import at_least, check_count, check_name, check_number, check_positive, check_up_to_1, must_be, one_of
from .declare import Arguments, Cost, argument, arguments

__all__ = [
    "Arguments",
    "Cost",
    "argument",
    "arguments",
    "at_least",
    "check_count",
    "check_name",
    "check_number",
    "check_positive",
    "check_up_to_1",
    "must_be",
    "one_of",
    "shared",
]
