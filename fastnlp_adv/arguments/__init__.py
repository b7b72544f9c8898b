"""The arguments of methods and callbacks: each written once, with its type, default, check and description."""

from . import shared
from .checks import (
    Check,
    at_least,
    at_most,
    check_arguments,
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_positive,
    optional,
)
from .declare import Arguments, Cost, argument, arguments

__all__ = [
    "Arguments",
    "Check",
    "Cost",
    "argument",
    "arguments",
    "at_least",
    "at_most",
    "check_arguments",
    "check_choice",
    "check_count",
    "check_flag",
    "check_number",
    "check_positive",
    "optional",
    "shared",
]
