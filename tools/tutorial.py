"""
Run the tutorial and keep its outputs. Both languages have the same code, so it runs once, and both get the outputs.

    python tools/tutorial.py
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "examples"
NOTEBOOKS = [FOLDER / "tutorial.ipynb", FOLDER / "tutorial.zh-CN.ipynb"]


def read(path: Path) -> NotebookNode:
    """
    :param path: of a notebook.
    :return: the notebook.
    """
    return nbformat.read(path, as_version=4)


def write(notebook: NotebookNode, path: Path) -> None:
    """
    :param notebook: a notebook.
    :param path: where to.
    """
    nbformat.write(notebook, path)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """
    :param notebook: a notebook.
    :return: its cells with code.
    """
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: NotebookNode) -> None:
    """
    Run a notebook from top to bottom, in a kernel of its own. The first error ends it.

    :param notebook: the notebook, whose outputs are replaced.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    path = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    # Warnings name files of this machine, and threads that spin while they wait stall one another on a busy one.
    client.execute(env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"})


def main() -> None:
    first, *others = map(read, NOTEBOOKS)
    execute(first)
    for notebook in others:
        for cell, same in zip(code_cells(notebook), code_cells(first), strict=True):
            cell.outputs, cell.execution_count = same.outputs, same.execution_count
        notebook.metadata = first.metadata
    for path, notebook in zip(NOTEBOOKS, [first, *others], strict=True):
        write(notebook, path)


if __name__ == "__main__":
    main()
