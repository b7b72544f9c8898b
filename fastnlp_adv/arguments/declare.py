"""The arguments of methods and callbacks: each written once, with its type, default, check and description.

A method's arguments are a class of their own, which the method and its callback inherit::

    @arguments
    class FGMArguments(Arguments):
        epsilon: float = argument(1.0, "the norm of the perturbation")

    @arguments
    class FGM(FGMArguments, EmbeddingAttack): ...          # FGM(model, epsilon=1.0)

    @arguments
    class FGMCallback(AttackCallback, FGMArguments): ...   # FGMCallback(epsilon=1.0, *, start=0, ...)

Both are dataclasses, so signatures, editors and type checkers see them. Values are checked when they are assigned, in
the constructor as later. ``:arguments:`` in a docstring stands for the descriptions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import textwrap
from typing import Any, ClassVar, Dict, NamedTuple, Optional, TypeVar, Union, get_args, get_origin

from typing_extensions import dataclass_transform

from .checks import Check, check_count, check_flag, check_number, one_of

__all__ = ["Arguments", "Cost", "argument", "arguments"]

_T = TypeVar("_T", bound=type)


def argument(default: Any, description: str, check: Check | None = None) -> Any:
    """
    Declare an argument.

    :param default: its default.
    :param description: what it means, with its unit, as it is to stand behind ``:param name:``.
    :param check: called with name and value; by the type if ``None``.
    :return: the default, for a type checker.
    """
    return dataclasses.field(default=default, metadata={"description": description, "check": check})


class Cost(NamedTuple):
    """
    What a step runs, where plain training runs ``Cost(1, 1, 0)``.

    :param forwards: forward passes.
    :param backwards: of these, how many a backward pass goes through to the parameters.
    :param inner: backward passes that end at the embeddings, at about half the price.
    """

    forwards: int
    backwards: int
    inner: int


class Arguments:
    """What all classes of arguments share: a value is checked whenever it is assigned."""

    _checks: ClassVar[Dict[str, Check]] = {}
    #: how many arguments may be given by position; ``None`` for all
    _positional: ClassVar[Optional[int]] = None

    def __setattr__(self, name: str, value: Any) -> None:
        check = self._checks.get(name)
        if check is None:
            super().__setattr__(name, value)
            return
        check(name, value)
        before = vars(self).get(name)
        super().__setattr__(name, value)
        if "_complete" in vars(self):
            try:
                self.check_together()
            except ValueError:
                super().__setattr__(name, before)
                raise
            self.changed(name)

    def __post_init__(self) -> None:
        self.check_together()
        self._complete = True

    def check_together(self) -> None:
        """Refuse values that do not go together; called after each assignment."""

    def changed(self, name: str) -> None:
        """Hear of an argument that was assigned after the constructor."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arguments."""
        return tuple(cls._checks)

    def values(self) -> dict[str, Any]:
        """Return the arguments as they are now, by name."""
        return {name: getattr(self, name) for name in self._checks}


@dataclass_transform(eq_default=False)
def arguments(cls: _T) -> _T:
    """
    Give a class a constructor that takes the declared arguments, checks of them, and their descriptions.

    :param cls: the class.
    :return: the class.

    Example::

        >>> @arguments
        ... class Reach(Arguments):
        ...     '''Something with a radius.
        ...
        ...     :arguments:
        ...     '''
        ...     epsilon: float = argument(1.0, "the radius")
        >>> reach = Reach(0.5)
        >>> reach.epsilon = -1
        Traceback (most recent call last):
        ValueError: Expected `epsilon` to be a finite, non-negative number, but got -1.
        >>> reach.epsilon, Reach.__doc__.split("\\n")[2].strip()
        (0.5, ':param epsilon: the radius.')
    """
    doc = cls.__doc__ or f"The arguments of {cls.__name__.replace('Arguments', '')}.\n\n:arguments:\n"
    made: Any = dataclasses.dataclass(eq=False, repr=False)(cls)
    fields = [field for field in dataclasses.fields(made) if "description" in field.metadata]
    made._checks = {field.name: _check_of(made, field) for field in fields}
    _limit_positions(made)
    made.__doc__ = _described(doc, fields) if ":arguments:" in doc else doc
    return made


def _check_of(cls: type, field: dataclasses.Field[Any]) -> Check:
    """Return the check of an argument: its own, or else the one that its type stands for; None where that allows it."""
    owner = next(base for base in cls.__mro__ if field.name in vars(base).get("__annotations__", {}))
    annotation = vars(owner)["__annotations__"][field.name]
    check = field.metadata["check"]
    if check is None:
        # this annotation alone: `get_type_hints` reads all, and Python 3.8 cannot read `dict[str, int]`
        hint = eval(annotation, vars(sys.modules[owner.__module__]))
        options = get_args(hint) if get_origin(hint) is Union else (hint,)
        (kind,) = [option for option in options if option is not type(None)]
        check = _TYPES.get(kind) or one_of(get_args(kind))
    return _unless_none(check) if annotation.startswith("Optional[") else check


def _unless_none(check: Check) -> Check:
    def check_unless_none(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


_TYPES: dict[Any, Check] = {float: check_number, int: check_count, bool: check_flag}


def _limit_positions(cls: Any) -> None:
    """Make the arguments of a callback keyword-only after the first, which Python 3.8's dataclasses cannot."""
    if cls._positional is None:
        return
    init, signature = cls.__init__, inspect.signature(cls.__init__)
    parameters = list(signature.parameters.values())
    allowed = 1 + cls._positional
    parameters[allowed:] = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters[allowed:]]
    limited = signature.replace(parameters=parameters)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the class's own
        bound = limited.bind(self, *args, **kwargs)
        init(*bound.args, **bound.kwargs)

    __init__.__signature__ = limited  # type: ignore[attr-defined]
    cls.__init__ = __init__


def _described(doc: str, fields: list[dataclasses.Field[Any]]) -> str:
    (line,) = [each for each in doc.splitlines() if each.strip() == ":arguments:"]
    indent = line[: len(line) - len(line.lstrip())]
    entries = [
        textwrap.fill(
            f":param {field.name}: {field.metadata['description']}.",
            width=120,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for field in fields
    ]
    return doc.replace(line, "\n".join(entries))
