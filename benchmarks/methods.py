"""The methods of the package, found among its callbacks: what the suites and the benchmarks over all of them read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastnlp_adv import callbacks
from fastnlp_adv.arguments import Cost
from fastnlp_adv.attacks import Attack
from fastnlp_adv.callbacks import MethodCallback

__all__ = ["METHODS", "Cost", "Method"]


@dataclass(frozen=True)
class Method:
    """One method: its callback, and what that says of it."""

    callback: type[MethodCallback]

    @property
    def method(self) -> type:
        """The class for plain loops."""
        return self.callback.method_class

    @property
    def name(self) -> str:
        """The name of that class."""
        return self.method.__name__

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return self.callback.method_class.paper

    @property
    def kind(self) -> str:
        """``"attack"``, of which a Trainer takes one, or ``"regularizer"``, which all combine."""
        return "attack" if issubclass(self.method, Attack) else "regularizer"

    def cost(self, **arguments: Any) -> Cost:
        """What a step with these arguments runs."""
        return self.callback(**arguments).cost  # type: ignore[attr-defined]


_CALLBACKS = [getattr(callbacks, name) for name in callbacks.__all__]
_FOUND = [Method(each) for each in _CALLBACKS if hasattr(getattr(each, "method_class", None), "paper")]

#: the methods by name, attacks first
METHODS: dict[str, Method] = {row.name: row for row in sorted(_FOUND, key=lambda row: (row.kind, row.name))}
