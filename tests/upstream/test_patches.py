"""What the patches for fastNLP hold, and the checks that `make upstream` makes of them."""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import fastNLP
import pytest

from upstream import patches, results, t8

NAMES = ["TorchFGMCallback", "TorchPGDCallback", "TorchRDropCallback", "RDropMixin"]


def lines_of_code(source):
    """How many lines hold more than a comment or a docstring."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    without = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in without]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstrings)


def test_all_new_code_is_at_most_600_lines():
    sources = patches.new_files()
    assert len(sources) == 4
    assert lines_of_code('"""One."""\n\n# two\nx = (\n    1)  # three\n') == 2
    assert 400 < sum(map(lines_of_code, sources.values())) <= 600


@pytest.mark.parametrize("path", patches.new_files())
def test_new_files_are_what_fastnlp_takes(path):
    source = patches.new_files()[path]
    ast.parse(source, feature_version=(3, 6))  # the oldest Python that fastNLP allows
    assert max(map(len, source.splitlines())) <= 79
    assert '"' not in re.sub(r'"""|"[^"\n]*\'[^"\n]*"', "", source)  # double quotes only around single ones
    if path.startswith("fastNLP"):
        assert "if _NEED_IMPORT_TORCH:" in source


def test_both_series_export_the_same_names():
    places = [f"fastNLP/core/{folder}__init__.py" for folder in ("", "callbacks/", "callbacks/torch_callbacks/")]
    for series in (patches.SERIES, patches.EXPORTS):
        for place in places:
            added = [
                line
                for patch in series
                for section in patch.read_text(encoding="utf-8").split("\ndiff --git ")[1:]
                if section.startswith(f"a/{place} ")
                for line in section.splitlines()
                if line.startswith("+")
            ]
            for name in NAMES:
                assert any(f"'{name}'" in line for line in added), (place, name)


@pytest.fixture(scope="module")
def patched_fastnlp(tmp_path_factory):
    """A copy of the installed fastNLP with the patches."""
    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(Path(fastNLP.__file__).parent, folder / "fastNLP", ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "core.autocrlf=false"]
    new = ["--exclude=docs/*", "--exclude=*__init__.py", patches.SERIES[1], patches.SERIES[3]]
    for command in (["init"], ["add", "-A", "-f"], ["commit", "-m", "1.0.1"], ["am", *new], ["am", *patches.EXPORTS]):
        done = subprocess.run([*git, *map(str, command)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def ran(patched_fastnlp):
    """A process that imports the patched fastNLP, and then runs the tests that the patches bring."""
    options = ["-c", os.devnull, "--rootdir", str(patched_fastnlp), "-q", "-p", "no:cacheprovider"]
    source = f"""
import fastNLP, pytest, sys
from fastNLP.core.callbacks import {", ".join(NAMES)}
print(fastNLP.__file__, flush=True)
sys.exit(pytest.main([*{options!r}, "tests"]))
"""
    environment = {**os.environ, "PYTHONPATH": str(patched_fastnlp)}
    command = [sys.executable, "-W", "ignore", "-c", source]
    return subprocess.run(command, cwd=patched_fastnlp, env=environment, capture_output=True, text=True)


def test_installed_fastnlp_takes_the_patches(patched_fastnlp, ran):
    assert ran.stdout.partition("\n")[0] == str(patched_fastnlp / "fastNLP" / "__init__.py"), ran.stderr


def test_their_own_tests_pass(ran):
    assert ran.returncode == 0, ran.stdout
    assert "26 passed" in ran.stdout


def test_cells_that_the_patches_change_train_with_the_callbacks():
    cells = [cell for patch in patches.SERIES for cell in (t8.cells_of_patch(patch) if "t8-" in patch.name else [])]
    trained = [name for name in NAMES for cell in cells if name in cell and "trainer.run()" in cell]
    assert trained == ["TorchFGMCallback", "TorchRDropCallback", "RDropMixin"]
    for cell in [t8.PREAMBLE, *cells]:
        compile(cell, "T8", "exec")


def report(path, **outcomes):
    cases = {"passed": "", "failed": "<failure/>", "skipped": "<skipped/>"}
    body = "".join(f'<testcase classname="c" name="{n}">{cases[o]}</testcase>' for n, o in outcomes.items())
    path.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    return path


def test_a_test_that_ends_differently_is_found_and_so_is_no_test_at_all(tmp_path, capsys):
    before = report(tmp_path / "before.xml", a="passed", b="failed", c="skipped")
    same = report(tmp_path / "same.xml", a="passed", b="failed", c="skipped")
    after = report(tmp_path / "after.xml", a="passed", b="passed", d="passed")
    outcome = results.Results()
    outcome.compared("same", results.compare(before, same))
    outcome.not_run("another", "out of reach")
    assert outcome.summary() == 0
    outcome.compared("different", results.compare(before, after))
    assert outcome.summary() == 1
    printed = capsys.readouterr().out
    assert "c::b: failure before, passed after" in printed
    assert "c::d: missing before, passed after" in printed
    assert "NOT RUN  another (out of reach)" in printed
    nothing, empty = results.Results(), report(tmp_path / "empty.xml")
    nothing.compared("no test at all", results.compare(empty, empty))
    assert nothing.summary() == 1
