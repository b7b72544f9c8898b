"""Checks of the methods that a trainer is given."""

from __future__ import annotations

from typing import Any

from ..attacks import Attack
from ..regularizers import Regularizer


def check_methods(methods: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are unattached methods that go together."""
    if not isinstance(methods, (list, tuple)):
        raise TypeError(
            f"Expected `methods` to be a list of attacks and regularizers, but got {type(methods).__name__}. Give "
            "`methods=[FGM(epsilon=1.0)]`."
        )
    names: dict[type, str] = {}
    for method in methods:
        name, kind = type(method).__name__, Attack if isinstance(method, Attack) else type(method)
        if not isinstance(method, (Attack, Regularizer)):
            raise TypeError(
                f"Expected `methods` to hold attacks and regularizers, but got {_shown(method)}. Give methods, such as "
                "`FGM(epsilon=1.0)`; callbacks of fastNLP are for its Trainer."
            )
        if method.model is not None:
            raise ValueError(
                f"Expected {name} to be unattached, but got one that is attached to a {type(method.model).__name__}. "
                f"Give `{name}(...)` without the model, which the Trainer has."
            )
        if kind in names:
            raise ValueError(
                f"Expected at most one attack, and one regularizer of a kind, but got {names[kind]} and {name}. Keep "
                "one of them."
            )
        names[kind] = name


def _shown(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
