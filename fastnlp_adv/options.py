"""How the arguments of a method are declared and checked.

A method is a dataclass. Each argument is declared once, in the class that has the capability::

    @options
    class FGM(TwoPassAttack):
        '''The fast gradient method.

        :options:
        '''

        epsilon: float = option(default=1.0, check=check_number, doc="the norm of the perturbation", kw_only=False)

Signatures, editors and type checkers see the arguments; ``:options:`` in a docstring stands for their descriptions.
Values are checked whenever they are assigned.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from typing_extensions import dataclass_transform

_T = TypeVar("_T", bound=type)

#: raises ValueError if the value of the argument of this name is out of range
Check = Callable[[str, Any], None]


def must_be(what: str, test: Callable[[Any], bool]) -> Check:
    """
    Return a check that raises where ``test`` returns False.

    :param what: the values that pass it, in words.
    :param test: returns whether a value passes.

    Example::

        >>> must_be("an even number", lambda value: value % 2 == 0)("steps", 3)
        Traceback (most recent call last):
        ValueError: Expected `steps` to be an even number, but got 3.
    """

    def check(name: str, value: Any) -> None:
        if not test(value):
            found = repr(value)
            found = found if len(found) < 80 and "\n" not in found else f"an object of type {type(value).__name__}"
            raise ValueError(f"Expected `{name}` to be {what}, but got {found}.")

    return check


def one_of(*choices: Any) -> Check:
    """Return a check that takes only these values."""
    return must_be(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices)


def at_least(least: int) -> Check:
    """Return a check that takes only integers of at least ``least``."""
    return must_be(f"an integer of at least {least}", lambda value: _is(numbers.Integral, value) and value >= least)


def optional(check: Check) -> Check:
    """Return a check that takes ``None`` as well."""

    def check_unless_none(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number, which True is not."""
    return _is(numbers.Real, value) and math.isfinite(value)


check_number = must_be("a finite, non-negative number", lambda value: is_finite(value) and value >= 0)
check_positive = must_be("a positive number", lambda value: is_finite(value) and value > 0)
check_up_to_1 = must_be("a number from 0 to 1", lambda value: is_finite(value) and 0 <= value <= 1)
check_fraction = must_be("a positive number of at most 1", lambda value: is_finite(value) and 0 < value <= 1)
check_count = at_least(1)
# NumPy's bool_ is not Python's bool
check_flag = must_be("True or False", lambda value: type(value).__name__ in ("bool", "bool_"))
check_mask = must_be(
    "None, the key of a batch field or a callable",
    lambda value: value is None or callable(value) or (isinstance(value, str) and value != ""),
)
check_name = must_be(
    "a part of a name or None", lambda value: value is None or (isinstance(value, str) and value != "")
)


def option(*, default: Any, check: Check, doc: str, kw_only: bool = True) -> Any:
    """
    Declare an argument.

    :param default: its default.
    :param check: called with name and value; raises ``ValueError`` if the value is out of range.
    :param doc: its description, with the unit, as written behind ``:param name:``.
    :param kw_only: False for the one argument that may be given by position, the size.
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"check": check, "doc": doc})


class Options:
    """The base of classes with arguments: checks values when they are assigned, and refuses misspelt names."""

    #: the checks of the arguments, by name, the class's own first
    _checks: ClassVar[dict[str, Check]] = {}
    _docs: ClassVar[dict[str, str]] = {}

    if not TYPE_CHECKING:  # so that type checkers refuse misspelt assignments, too

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in self._checks:
                if "_is_complete" in vars(self) and not hasattr(self, name):
                    check_assignment(self, self._checks, name)
                super().__setattr__(name, value)
                return
            self._checks[name](name, value)
            if "_is_complete" not in vars(self):
                super().__setattr__(name, value)
                return
            before = vars(self)[name]
            self.check_change(name, value)
            super().__setattr__(name, value)
            try:
                self.validate()
            except ValueError:
                super().__setattr__(name, before)
                raise

    def __post_init__(self) -> None:
        self.validate()
        self._is_complete = True

    def validate(self) -> None:
        """Raise ``ValueError`` if values do not go together; called after each assignment."""

    def check_change(self, name: str, value: Any) -> None:
        """Raise ``ValueError`` if an argument cannot take another value any more."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arguments."""
        return tuple(cls._checks)

    def values(self) -> dict[str, Any]:
        """Return the arguments by name."""
        return {name: getattr(self, name) for name in self._checks}


def check_assignment(owner: Any, names: Iterable[str], name: str) -> None:
    """
    Raise ``AttributeError`` where a name that is assigned looks like a misspelt argument. Classes outside of this
    package may have attributes of any name.
    """
    is_ours = type(owner).__module__.split(".")[0] == __name__.split(".")[0]
    if not is_ours or hasattr(owner, name) or name.startswith("_") or name.endswith("_"):
        return
    if difflib.get_close_matches(name, names, n=1, cutoff=0.8):
        raise AttributeError(unknown(type(owner), names, name))


def unknown(cls: type, names: Iterable[str], name: str) -> str:
    """Return the message about an argument that a class does not have."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or [each for each in known if each.startswith(name)]
    hint = f" Did you mean `{near[0]}`?" if near else ""
    return f"Expected an argument of {cls.__name__}, but got `{name}`.{hint} It has {', '.join(known)}."


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(option, dataclasses.field))
def options(cls: _T) -> _T:
    """
    Make a class a dataclass whose arguments are keyword-only, and write their descriptions into its docstring.

    Example::

        >>> @options
        ... class Reach(Options):
        ...     '''Something with a radius.
        ...
        ...     :options:
        ...     '''
        ...     epsilon: float = option(default=1.0, check=check_number, doc="the radius", kw_only=False)
        >>> reach = Reach(0.5)
        >>> reach.epsilon = -1
        Traceback (most recent call last):
        ValueError: Expected `epsilon` to be a finite, non-negative number, but got -1.
        >>> Reach(epsilom=0.5)
        Traceback (most recent call last):
        TypeError: Expected an argument of Reach, but got `epsilom`. Did you mean `epsilon`? It has epsilon.
        >>> reach.epsilon, Reach.__doc__.split("\\n")[2].strip()
        (0.5, ':param epsilon: the radius.')
    """
    doc = cls.__doc__
    made: Any = dataclasses.dataclass(eq=False, repr=False, kw_only=True)(cls)
    made.__doc__ = doc
    inherited = {name for base in made.__mro__[1:] for name in getattr(base, "_checks", ())}
    fields = [field for field in dataclasses.fields(made) if "check" in field.metadata]
    fields.sort(key=lambda field: (field.kw_only, field.name in inherited))
    made._checks = {field.name: field.metadata["check"] for field in fields}
    _name_unknown_arguments(made)
    made._docs = {field.name: field.metadata["doc"] for field in fields}
    made.__doc__ = doc and with_options(doc, made)
    return cls


def _name_unknown_arguments(cls: Any) -> None:
    init, accepted = cls.__init__, {field.name for field in dataclasses.fields(cls)}

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the class's own
        for name in kwargs:
            if name not in accepted:
                raise TypeError(unknown(type(self), self.names(), name))
        init(self, *args, **kwargs)

    cls.__init__ = __init__


def with_options(doc: str, cls: type[Options]) -> str:
    """Return a docstring with the descriptions of a class's arguments in place of ``:options:``."""
    lines = []
    for line in doc.splitlines():
        if line.strip() != ":options:":
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for name, described in cls._docs.items():
            text = f"{indent}:param {name}: {described}."
            lines += textwrap.wrap(
                text, width=120, subsequent_indent=indent + "    ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join(lines)
