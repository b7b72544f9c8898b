"""The tutorial: the same code in both languages, outputs of one whole run, and a run of it on a small setting."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import tutorial as execute_tutorial
from tutorial import NOTEBOOKS, code_cells, read

FOLDER = NOTEBOOKS[0].parent
#: what takes the place of the values in the cell of the settings
SMALL = """
DATASET, MODEL, BATCH_SIZE, EPOCHS = {reviews!r}, {bert!r}, 8, 1
ROBUST_TEXTS, STEPS, PRINT_EVERY = 4, 1, 2
"""
by_language = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def check_outputs(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert all(cell.outputs for cell in cells if re.search(r"\bprint\(|^train\(|= train\(", cell.source, flags=re.M))
    # of a picture, that there is one
    return "\n".join(each.text if each.output_type == "stream" else each.data["text/plain"] for each in outputs)


@by_language
def test_outputs_are_those_of_one_whole_run(path):
    shown = check_outputs(read(path))
    assert "adv_loss" in shown and "accuracy#robust" in shown
    assert not re.search(r"/(home|root|tmp|usr|opt|mnt|work|Users)/|[A-Z]:\\|0x[0-9a-f]{6}", shown)
    assert str(Path.cwd()) not in shown
    assert "\x1b" not in shown and "Warning" not in shown


def test_both_languages_have_the_same_code_and_outputs():
    first, second = map(read, NOTEBOOKS)
    assert [cell.cell_type for cell in first.cells] == [cell.cell_type for cell in second.cells]
    for ours, theirs in zip(code_cells(first), code_cells(second), strict=True):
        assert ast.dump(ast.parse(ours.source)) == ast.dump(ast.parse(theirs.source))
        assert ours.outputs == theirs.outputs
    headings = [re.findall(r"^#+ ", cell.source, flags=re.M) for cell in first.cells if cell.cell_type == "markdown"]
    others = [re.findall(r"^#+ ", cell.source, flags=re.M) for cell in second.cells if cell.cell_type == "markdown"]
    assert headings == others


@by_language
def test_links_lead_somewhere(path):
    for cell in read(path).cells:
        for target in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown" else ():
            assert (FOLDER / target).exists(), target


def test_it_runs_from_top_to_bottom_and_keeps_its_outputs(reviews, bert, tmp_path, monkeypatch):
    copies = [tmp_path / path.name for path in NOTEBOOKS]
    for path, copy in zip(NOTEBOOKS, copies, strict=True):
        notebook = read(path)
        (settings,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        settings.source += SMALL.format(reviews=str(reviews), bert=str(bert))
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        execute_tutorial.write(notebook, copy)
    monkeypatch.setattr(execute_tutorial, "NOTEBOOKS", copies)
    execute_tutorial.main()
    shown = [check_outputs(read(copy)) for copy in copies]
    assert shown[0] == shown[1]
    assert "32 texts to train on, 8 to test on" in shown[0]
    assert "accuracy#robust" in shown[0]
