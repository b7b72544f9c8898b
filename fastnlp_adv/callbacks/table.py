"""The table of methods, which documentation, examples, benchmarks and tests over all methods read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..attacks import Attack
from ..method import Cost, Method
from . import methods
from .atta import ATTACallback
from .base import MethodCallback

__all__ = ["METHODS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """
    One method.

    :param callback: its callback.
    """

    callback: type[MethodCallback]

    @property
    def method(self) -> type[Method]:
        """The class for plain loops."""
        return self.callback.method_class

    @property
    def name(self) -> str:
        """The name of that class."""
        return self.method.__name__

    @property
    def title(self) -> str:
        """The name as papers write it."""
        return _TITLES.get(self.name, self.name)

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return self.method.paper

    @property
    def kind(self) -> str:
        """``"attack"``, of which a Trainer takes one, or ``"regularizer"``, which all combine."""
        return "attack" if issubclass(self.method, Attack) else "regularizer"

    def cost(self, **arguments: Any) -> Cost:
        """Return the passes of a step with these arguments."""
        return self.method(**arguments).cost


_TITLES = {"RDrop": "R-Drop", "TAVAT": "TA-VAT", "GradientPenalty": "gradient penalty"}
_CALLBACKS = [ATTACallback, *(getattr(methods, name) for name in methods.__all__)]
_ENTRIES = sorted((Entry(each) for each in _CALLBACKS), key=lambda entry: (entry.kind, entry.name))

#: the methods by name, attacks first
METHODS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
