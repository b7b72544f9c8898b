"""Chinese pages show the code of the English ones, keep to the table of words, and break no line between characters."""

from __future__ import annotations

import json
import re

import pytest
from pages import ROOT, blocks, read, structure, without_comments

PAGES = ["README.zh-CN.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/zh-CN").rglob("*.md"))]
NOTEBOOK = "examples/tutorial.zh-CN.ipynb"
#: kept in English only: tables that programs write, the reference, and what contributors read
ENGLISH_ONLY = ("api/", "benchmarks/", "study/", "versions.md", "changelog.md", "contributing.md")
#: a Chinese character, or a punctuation mark of full width
WIDE = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
#: words of earlier translations, and those of the table in CONTRIBUTING.md
PHRASES = {
    "[一二两三几每各多这那]遍|遍数|内层的一遍": "前向和反向",
    "查表": "embedding 输出",
    "学会|学得会|学不会|什么也没学到|学不到": "收敛",
    "经得起|经不起": "鲁棒性",
    "可试": "建议取值",
    "被攻击的样本": "受攻击的样本",
    "嫌.{0,20}太贵": "开销",
}


def english(name):
    """Return the English page of a Chinese one."""
    return name.replace("docs/zh-CN/", "docs/").replace(".zh-CN.md", ".md")


def prose(name):
    """Return a page, or the text of a notebook, without code."""
    text = read(name)
    if name.endswith(".ipynb"):
        cells = [each["source"] for each in json.loads(text)["cells"] if each["cell_type"] == "markdown"]
        text = "\n\n".join(map("".join, cells))
    return re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.S)


def broken(text):
    """Return the line breaks between two Chinese characters, with the characters around them."""
    return re.findall(rf"{WIDE} *\n *{WIDE}", text)


def phrases(text):
    """Return the phrases of the list in a text, with the better word."""
    return [(found[0], better) for pattern, better in PHRASES.items() for found in re.finditer(pattern, text)]


def linked(name, language):
    """Return the file that the link below the title of a page leads to."""
    link = read(name).splitlines()[2]
    return ((ROOT / name).parent / re.match(rf"\[{language}\]\((.*?)\)", link)[1]).resolve()


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_headings_blocks_and_code(name):
    assert structure(name) == structure(english(name))
    first, second = ([without_comments(block) for block in blocks(each)] for each in (english(name), name))
    assert first == second


@pytest.mark.parametrize("name", PAGES)
def test_each_language_links_to_the_other(name):
    assert linked(name, "English") == ROOT / english(name)
    assert linked(english(name), "(?:简体)?中文") == ROOT / name


def test_every_guide_is_there_in_both_languages():
    translated = {english(name) for name in PAGES}
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts}
    kept = {name for name in pages if not name.removeprefix("docs/").startswith(("zh-CN/", *ENGLISH_ONLY))}
    assert kept | {"README.md", "docs/study/README.md"} == translated


@pytest.mark.parametrize("name", [*PAGES, NOTEBOOK])
def test_no_line_breaks_between_two_characters_and_words_are_those_of_the_table(name):
    assert broken(prose(name)) == []
    assert phrases(prose(name)) == []


def test_both_sites_list_the_same_pages():
    """The Chinese one has those that are translated, and links to some of the others on the English one."""
    for page in ("index.md", "methods.md"):
        lists = (re.findall(r"<!-- toctree: .*\n([^>]*)", read(f"docs/{folder}{page}")) for folder in ("", "zh-CN/"))
        first, second = (re.findall(r"^[\w./]+$", "\n".join(each), flags=re.M) for each in lists)
        assert second == [name for name in first if (ROOT / f"docs/zh-CN/{name}.md").exists()]
    for target in re.findall(r"<english://(.*)\.html>", read("docs/zh-CN/index.md")):
        assert (ROOT / f"docs/{target}.md").exists()


def test_the_checks_find_something():
    assert broken("扰动，\n每步") and not broken("扰动\n\n每步") and not broken("用 FGM\n训练")
    assert [better for _, better in phrases("内层的一遍到查表为止")] == ["前向和反向", "embedding 输出"]
