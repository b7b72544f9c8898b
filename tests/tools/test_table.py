"""A table as Markdown and for the terminal."""

from __future__ import annotations

from tools.table import Table


def test_in_markdown():
    assert Table(["a", "b"], [["x", "1"]]).markdown() == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert Table(["a", "b"], [], left=2).markdown() == "| a | b |\n| --- | --- |"


def test_for_the_terminal():
    laid = Table(["a", "b"], [["x", "1"]], title="Cost", detail="on two cores").for_terminal()
    assert laid.title == "Cost: on two cores" and laid.row_count == 1
    assert [column.justify for column in laid.columns] == ["left", "right"]
