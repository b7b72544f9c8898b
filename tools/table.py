"""A table of text, for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import rich.table

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """
    Rows of text under column names.

    :param columns: the names.
    :param rows: as many texts each.
    :param left: how many columns stand on the left; those after them, numbers mostly, stand on the right.
    :param title: what it is about.
    :param detail: to what it applies; with the title it stands above the table in the terminal.

    Example::

        >>> print(Table(["method", "accuracy"], [["FGM", "0.82"]]).markdown())
        | method | accuracy |
        | --- | ---: |
        | FGM | 0.82 |
    """

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    left: int = 1
    title: str = ""
    detail: str = ""

    def markdown(self) -> str:
        """Write the table as Markdown."""
        marks = ["---" if i < self.left else "---:" for i in range(len(self.columns))]
        return "\n".join(_line(cells) for cells in [self.columns, marks, *self.rows])

    def for_terminal(self) -> rich.table.Table:
        """Lay the table out for rich."""
        laid = rich.table.Table(title=": ".join(filter(None, (self.title, self.detail))))
        for i, column in enumerate(self.columns):
            on_the_right = i >= self.left
            laid.add_column(column, justify="right" if on_the_right else "left", no_wrap=on_the_right)
        for row in self.rows:
            laid.add_row(*row)
        return laid


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
