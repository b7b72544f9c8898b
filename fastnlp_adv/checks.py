"""Checks of arguments, in one wording: what was expected, what came, what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .functional import NORMS
from .perturbation import GRANULARITIES
from .random_state import DROPOUT_MASKS

__all__ = [
    "check_arguments",
    "check_choice",
    "check_count",
    "check_flag",
    "check_inner_passes",
    "check_name",
    "check_number",
]


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


def check_name(name: str, value: Any) -> None:
    """
    Refuse what is neither a part of a parameter's name nor None.

    :param name: what the argument is called.
    :param value: its value.
    :raises ValueError: if it is something else.
    """
    if not isinstance(value, (str, type(None))) or value == "":
        raise ValueError(f"Expected `{name}` to be a part of a name or None, but got {value!r}.")


def _check_mask(name: str, value: Any) -> None:
    if not (value is None or isinstance(value, str) or callable(value)):
        raise ValueError(f"Expected `{name}` to be None, the key of a batch field or a callable, but got {value!r}.")


def _check_divergence(name: str, value: Any) -> None:
    if not callable(value):
        check_choice(name, value, ("categorical", "bernoulli", "mse"))


def _check_inner_autocast(name: str, value: Any) -> None:
    if value is not None and value is not torch.bfloat16:
        raise ValueError(
            f"Expected `{name}` to be None or torch.bfloat16, but got {value!r}. bfloat16 has the range of float32; in "
            "float16 small gradients would be 0."
        )


#: the same argument means the same in every method, and is checked in one place
_ARGUMENTS: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(("epsilon", "alpha", "init", "xi", "gamma"), check_number),
    **dict.fromkeys(("weight", "adv_weight", "kl_weight"), check_number),
    **dict.fromkeys(("replace", "random_init"), check_flag),
    "steps": check_count,
    "emb_name": check_name,
    "granularity": partial(check_choice, choices=GRANULARITIES),
    "norm": partial(check_choice, choices=tuple(NORMS)),
    "inner_autocast": _check_inner_autocast,
    "dropout_mask": partial(check_choice, choices=DROPOUT_MASKS),
    "divergence": _check_divergence,
    "reduction": partial(check_choice, choices=("batchmean", "sum", "mean")),
    "mode": partial(check_choice, choices=("concat", "two_pass")),
    "mask": _check_mask,
}


def check_inner_passes(arguments: dict[str, Any], there_are: bool) -> None:
    """
    Refuse a precision for passes that there are none of.

    :param arguments: by name.
    :param there_are: whether a step has a pass that does not train.
    :raises ValueError: if ``inner_autocast`` would do nothing.
    """
    value = arguments.get("inner_autocast")
    if value is not None and not there_are:
        raise ValueError(
            f"Expected `inner_autocast` to be None where every pass of a step trains, but got {value!r}. Leave it out, "
            "or use `replace=True`, or PGD with more `steps`."
        )


def check_arguments(arguments: dict[str, Any], **own: Callable[[str, Any], None]) -> None:
    """
    Check the arguments of a method.

    :param arguments: by name.
    :param own: checks of arguments that only this method has, or has in another sense.
    :raises ValueError: if one is out of range.
    """
    for name, value in arguments.items():
        {**_ARGUMENTS, **own}[name](name, value)
