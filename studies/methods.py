"""The methods of a study, by the names that its tables have."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

from fastNLP import Callback

from fastnlp_adv import callbacks

PLAIN = "plain"  # the baseline of all methods
WHOLE = "FGM"  # the baseline of cheaper methods

#: by name; :func:`add_methods` adds others
CALLBACKS: dict[str, type[Callback]] = {entry.title: entry.callback for entry in callbacks.METHODS.values()}


def add_methods(path: Path | None) -> list[str]:
    """Add the callbacks that a Python file defines to :data:`CALLBACKS`, by the class names of their methods."""
    if path is None:
        return []
    spec = importlib.util.spec_from_file_location(f"methods_from_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"Expected `--methods-from` to be a Python file, but got {path}.")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = [each for each in vars(module).values() if getattr(each, "__module__", None) == spec.name]
    found = {each.method_class.__name__: each for each in own if hasattr(each, "method_class")}
    if not found:
        raise ValueError(f"Expected `--methods-from` to be a file with callbacks of methods, but got {path} with none.")
    if taken := sorted(callbacks.METHODS.keys() & found):
        raise ValueError(f"Expected new names in `--methods-from`, but got {', '.join(taken)}. Rename the method.")
    CALLBACKS.update(found)
    return list(found)


def callbacks_of(method: str) -> list[Callback]:
    """
    :param method: :data:`PLAIN`, or names of :data:`CALLBACKS` with `` + `` between them; arguments that differ from
        their defaults follow a name: ``"FGM epsilon=0.5 + R-Drop"``.
    :return: new callbacks.
    :raises ValueError: there is no such method, or it does not take these arguments.
    """
    return [] if method == PLAIN else [_callback(part) for part in method.split(" + ")]


def _callback(text: str) -> Callback:
    name = " ".join(word for word in text.split() if "=" not in word)
    if name not in CALLBACKS:
        raise ValueError(f"Expected `--methods` to be of {PLAIN}, {', '.join(CALLBACKS)}, but got {name}.")
    arguments = dict(word.split("=", 1) for word in text.split() if "=" in word)
    try:
        return CALLBACKS[name](**{key: _value(value) for key, value in arguments.items()})
    except TypeError as reason:
        raise ValueError(f"Expected arguments of {CALLBACKS[name].__name__}, but got {text}: {reason}.") from None


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
