"""Every program of the pages runs, and nothing is missing or leads nowhere; test_chinese.py compares the languages."""

from __future__ import annotations

import re
import sys

import pytest
from pages import ROOT, blocks, broken_links, linked_methods, pages_of_methods, papers, read, reference
from support import distance

import fastnlp_adv
from fastnlp_adv.callbacks import METHODS

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
CHINESE = [name for name in PAGES if name.startswith("docs/zh-CN/")]
#: run by other tests: excerpts of the package, programs for several processes (tests/distributed/), and programs for
#: loggers, which tests/callbacks/test_log_callback.py runs
SPECIAL = ["docs/distributed.md", "docs/how_the_step_works.md", "docs/large_models.md", "docs/logging.md"]


@pytest.mark.parametrize("name", [n for n in PAGES if n not in [*CHINESE, *SPECIAL] and blocks(n)])
def test_the_blocks_of_a_page_run_one_after_the_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "docs/transformers_trainer.md":
        pytest.importorskip("fastnlp_adv.trainers.transformers", exc_type=ImportError)  # transformers may be too old
    monkeypatch.delitem(sys.modules, "classifier", raising=False)  # not the model that another page trained
    space = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)
    if name.startswith("docs/methods/"):
        assert type(space["callback"]) in [entry.callback for entry in METHODS.values()]
    if name == "docs/from_the_tutorial.md":
        assert distance(space["before"], space["after"]) == 0


def test_no_class_of_a_program_is_written_twice():
    classes = [
        (name, found)
        for name in ["README.md", "examples/classifier.py", *PAGES]
        if name not in CHINESE
        for block in ([read(name)] if name.endswith(".py") else blocks(name))
        for found in re.findall(r"^class .*\n(?:(?: +.*)?\n)*", block, flags=re.M)
    ]
    texts = [text.strip() for _, text in classes if "def " in text]
    assert [name for name, text in classes if texts.count(text.strip()) > 1] == []


def test_the_quickstart_links_to_the_program_of_the_readme():
    assert "<!-- program: ../README.md -->" in read("docs/quickstart.md")
    assert "<!-- program: ../../README.zh-CN.md -->" in read("docs/zh-CN/quickstart.md")


def test_excerpts_of_the_package_are_up_to_date():
    """Those of the page on the step; `...` stands for lines that are left out."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "fastnlp_adv").rglob("*.py")]
    excerpts = blocks("docs/how_the_step_works.md")
    assert excerpts
    for excerpt in excerpts:
        parts = re.split(r"^ *\.\.\.\n", excerpt, flags=re.M)
        assert any(re.search(".*".join(map(re.escape, parts)), source, flags=re.S) for source in sources), excerpt


def test_every_method_has_one_page():
    pages = pages_of_methods()
    assert sorted(pages) == sorted(METHODS)
    for folder in ("docs/methods", "docs/zh-CN/methods"):
        assert sorted(path.name for path in (ROOT / folder).glob("*.md")) == sorted(pages.values())


@pytest.mark.parametrize("folder", ["docs/methods", "docs/zh-CN/methods"])
@pytest.mark.parametrize("method", METHODS)
def test_the_card_of_a_method_has_its_paper_and_its_class(method, folder):
    text = read(f"{folder}/{pages_of_methods()[method]}")
    (card,) = re.findall(r"^\| (?:Paper|论文) \| .*$", text, flags=re.M)
    assert papers(card)[:1] == [METHODS[method].paper]
    assert f"from fastnlp_adv import {method}\n" in text


@pytest.mark.parametrize("name", ["docs/methods.md", "docs/zh-CN/methods.md"])
def test_the_table_and_the_list_of_pages_have_the_methods_of_the_package(name):
    methods = {page: method for method, page in pages_of_methods().items()}
    rows = linked_methods(name)
    assert sorted(methods[page] for page, _ in rows) == sorted(METHODS)
    for page, row in rows:
        entry = METHODS[methods[page]]
        assert f"| `{entry.callback.__name__}` |" in row
        assert papers(row) == [entry.paper]
    listed = re.findall(r"^methods/(\w+)$", read(name), flags=re.M)
    assert [f"{page}.md" for page in listed] == [page for page, _ in rows]
    kinds = [METHODS[methods[page]].kind for page, _ in rows]
    assert kinds == sorted(kinds)  # attacks come first, as the sentence below the table has it


def test_the_reference_has_every_public_name():
    assert {f"fastnlp_adv.{name}" for name in fastnlp_adv.__all__} - {"fastnlp_adv.compat"} <= {*reference()}
    assert any(name.startswith("fastnlp_adv.compat") for name in reference())


def test_every_recipe_is_on_the_page():
    for name in ("docs/recipes.md", "docs/zh-CN/recipes.md"):
        shown = re.findall(r"<!-- code: .*/(\w+)\.py -->", (ROOT / name).read_text(encoding="utf-8"))
        assert sorted(shown) == sorted(path.stem for path in (ROOT / "examples/recipes").glob("*.py"))


@pytest.mark.parametrize("name", [*PAGES, *(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb"))])
def test_links_lead_somewhere(name):
    assert broken_links(name) == []
