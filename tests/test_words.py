"""Prose in the field's words: docstrings, comments, messages and English pages have no phrase of the list below.

``python tests/test_words.py PATH ...`` prints the phrases in files and folders: Python, Markdown, notebooks.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
#: files and folders that have none of the phrases
CLEAN = [
    "fastnlp_adv",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/README.md",
    "examples/tutorial.ipynb",
    "benchmarks/words.py",
    "examples/recipes",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")),
    *(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if not str(path.relative_to(ROOT)).startswith(("docs/_build", "docs/zh-CN"))
    ),
    *(f"tests/{name}.py" for name in ("distributed/repairs", "test_batch", "test_compat", "test_layering")),
]

#: phrases, as regular expressions over text in lower case, and the better wording
PHRASES = {
    r"\bwhat\b": "a noun, such as 'the embeddings that it attacks'",
    r"\b(that|those) of\b": 'the noun again, or a genitive, such as "the model\'s"',
    r"\balone\b": "only",
    r"\b(come|comes|came|coming) (to|by)\b": "is, totals, receives, obtains",
    r"\b(may|can|will|would) come\b": "may be called, may follow",
    r"\b(whoever|nobody|somebody)\b": "the caller, the driver, the user",
    r"\bwho(ever)? (runs|drives|builds|calls)\b": "the driver",
    r"\bas (it is|it was|they are|they were)\b": "unchanged",
    r"\bthe whole of\b": "all of",
    r"\bsays\b": "states, names, logs, determines",
    r"\bwants?\b": "needs, expects, asks for",
    r"\b(is|are|was|were|be|been) told\b": "is given, receives; of 'cannot be told': cannot be determined",
    r"\bhas the say\b": "takes precedence",
    r"\b(has|have|had) (nothing )?to tell\b|\btells? the (host|device)\b": "no host-device synchronization",
    r"\bunreached\b|\b(is|are|was|were|been|not) reached\b|\blooked_up\b|\b(has|have|had|was|were) seen\b": "has_grad",
    r"\bgo(es)? on\b|\bgoing on\b|\bwent on\b": "continues",
    r"\bsee(s|ing|n)? to\b": "validates, ensures",
    r"\b(is|was|are|were) asked for\b": "the lookup, the argument, was given",
    r"\bnot due\b": "does not act in this step (start, every)",
    r"\ball that (it|is|they|are|was|were)\b|\bthat is all\b": "only, the rest, all examples",
    r"\bcounted by itself\b": "numbered separately",
    r"\band (its|the) like\b": "the names, such as 'R-Drop, VAT, SMART and R3F'",
    r"\bneeds? besides\b|\bbesides(?=[.,;)]|$)": "as well, in addition",
    r"\| (try|mind) \|": "Recommended, Caveats",
    r"\bends? in (this|these|those)\b": "prints, ends with",
    r"\bdear(er)?\b": "expensive",
    r"\bas you do it\b": "your setup",
    r"\bby (itself|themselves)\b": "automatically, separately",
    r"\bways? out\b": "a solution",
    r"\bhand(s|ed|ing)? (it|them|\S+ \S+|\S+)? ?to\b": "passes, gives",
    r"\bfor ever\b": "deadlocks",
    r"\bno way\b": "does not help",
    r"\blearn(s|ed|ing)? nothing\b|\bnothing is learned\b": "does not converge",
    r"\bstands? (in|under|beside|here|there)\b|\bstands for here\b": "is",
    r"\b(of|to) one's own\b": "your own, a custom one",
    r"\bwhatever\b|\bwherever\b": "for all, in any, also after an exception",
    r"\bat the price of\b": "at the cost of",
    r"\banew\b": "again, at random",
    r"\bplainly\b": "without a method",
    r"\bas (ever|without)\b(?! an?\b)": "as usual, as in plain training",
    r"\bhere, where\b|\bthe (most|least) \w+ here\b": "in our study",
}
#: right uses of them, and why
ALLOWED = {
    r"\b(knows?|shows?|say|decides?|asks?|sees?|explains?|reports?|logs?) what\b": "an indirect question",
    r"\bwhat to\b": "an indirect question",
    r"\bwhat\b[^.;:]*\?": "a question",
    r"\b(leave|leaves|leaving|left) (\S+ ){0,3}alone\b": "does not touch",
    r"\bstand-alone\b": "independent",
    r"\b(fgm|pgd|r-drop|plain training) alone\b": "without another method",
    r"\b(is|are|was|were|be|been) told apart\b": "distinguished",
    r"\bgo(es)? on to\b": "does next",
}


class Found(NamedTuple):
    """A phrase in a file."""

    path: Path
    line: int
    phrase: str
    better: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r}. Better: {self.better}."


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the blocks of prose of a file, each with the number of its first line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    if path.suffix in (".md", ".ipynb"):
        yield 1, re.sub(r"(?ms)^ *```.*?^ *```", _blank, text)
        return
    parts = set()  # of f-strings
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            texts = [str(part.value) if isinstance(part, ast.Constant) else "`" for part in node.values]
            yield node.lineno, "".join(texts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
    comments = {
        token.start[0]: token.string.lstrip("#: ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    for first in sorted(line for line in comments if line - 1 not in comments):
        after = next(line for line in range(first, first + len(comments) + 1) if line not in comments)
        yield first, "\n".join(comments[line] for line in range(first, after))


def _blank(found: re.Match[str]) -> str:
    """Keep the lines of code in a text, without what they hold."""
    return "\n" * found.group().count("\n") or "`"


def phrases(path: Path) -> list[Found]:
    """Return the phrases of the list in a file, in order."""
    found = []
    for first, text in prose(path):
        text = re.sub(r"(?m)^ *(>>>|\.\.\. ).*$", "", text)
        text = re.sub(r"(?s)``.+?``|`[^`\n]+`", _blank, text).lower()
        text = re.sub(r":(param|raises) [^:\n]+:", ":", text)
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
        flat = text.replace("\n", " ")
        allowed = [each.span() for pattern in ALLOWED for each in re.finditer(pattern, flat)]
        for pattern, better in PHRASES.items():
            for each in re.finditer(pattern, flat):
                if not any(start <= each.start() and each.end() <= end for start, end in allowed):
                    line = first + text.count("\n", 0, each.start())
                    found.append(Found(path, line, flat[max(0, each.start() - 25) : each.end() + 25].strip(), better))
    return sorted(found, key=lambda each: each.line)


def files(paths: Iterable[str]) -> list[Path]:
    """Return these files, and those of these folders in Python and Markdown."""
    found = [ROOT / path for path in paths]
    inside = {file for path in found for suffix in ("py", "md") for file in path.rglob(f"*.{suffix}")}
    return sorted(inside | {path for path in found if path.is_file()})


@pytest.mark.parametrize("path", files(CLEAN), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_has_none_of_the_phrases(path):
    found = phrases(path)
    assert not found, "\n" + "\n".join(map(str, found))


@pytest.mark.parametrize(
    "written, phrase",
    [
        ('"""Return what is added."""', "what"),
        ('"""Return the norm\n\n    of the weights and that\n    of the input."""', "that of"),
        ("x = 1  # for this step\n#: alone", "alone"),
        ('raise ValueError(f"Expected {x} to be as it is.")', "as it is"),
        ('warn("A pass says " "nothing.")', "says"),
    ],
)
def test_phrases_are_found_in_docstrings_comments_and_messages(tmp_path, written, phrase):
    file = tmp_path / "written.py"
    file.write_text(f"y = 0\n{written}\n")
    (found,) = phrases(file)
    assert phrase in found.phrase and found.better
    lines = "".join(file.read_text().splitlines(keepends=True)[: found.line])
    assert phrase.split()[0] in lines.splitlines()[-1]


@pytest.mark.parametrize(
    "written",
    [
        '"""Return ``what`` and `says`, and leave the weights alone; show what to do."""',
        '"""Return it.\n\n    >>> what = alone\n    """',
        "what, says = alone, wants",
        "#!  a comment\nx = 1\n# another",
    ],
)
def test_names_code_and_right_uses_are_not(tmp_path, written):
    file = tmp_path / "written.py"
    file.write_text(written)
    assert phrases(file) == []


def test_pages_are_read_without_their_code(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nwhat = alone\n```\n\nIt says\nso.\n")
    assert [(each.line, each.better[:6]) for each in phrases(page)] == [(7, "states")]


def test_notebooks_are_read_without_their_code(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["what = alone"]},
        {"cell_type": "markdown", "source": ["It ", "says so."]},
    ]
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    assert ["says" in each.phrase for each in phrases(notebook)] == [True]


@pytest.mark.parametrize(
    "written",
    [
        "# What happens under",
        "It ends in these lines",
        "Is a second pass too dear?",
        "what stands here for the loop",
        "training as you do it",
        "goes on in the rows that training began with",
        "tests come by themselves",
        "is refused, with the way out in the message",
        "the loss is that of what it hands to you",
        "would wait for each other for ever",
        "a short warmup is no way in between",
    ],
)
def test_phrases_that_readers_named_are_found(tmp_path, written):
    page = tmp_path / "page.md"
    page.write_text(written)
    assert phrases(page)


if __name__ == "__main__":
    for file in files(sys.argv[1:]):
        for each in phrases(file):
            print(each)
