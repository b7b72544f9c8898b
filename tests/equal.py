"""What Python 3.10 gives by ``zip(strict=True)``."""

from __future__ import annotations

from itertools import zip_longest

_END = object()


def zip_equal(*iterables):
    """Go through iterables together, and fail where one is shorter than another."""
    for items in zip_longest(*iterables, fillvalue=_END):
        assert not any(item is _END for item in items), "iterables of different lengths"
        yield items
