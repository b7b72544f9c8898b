"""The page of attacked texts, as a browser's parser reads it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnlp_adv import write_report
from fastnlp_adv.robustness import Attacked

EVIL = "<script>alert(1)</script> & \"quotes\" 'and' <del>marks</del> </article> <!-- "
FOOLED = Attacked("物流很快", "物溜很快", 1, 0, True, (("流", "溜"),), 9, starts=(1,), tried=7)
ROBUST = Attacked("bad film", "bad flm", 0, 0, True, (("film", "flm"),), 12, starts=(4,), tried=10)
WRONG = Attacked("fine", "fine", 1, 0, False, (), 1, tried=0)
UNTOUCHED = Attacked("……", "……", 1, 1, True, (), 2, tried=0)


class Page(HTMLParser):
    """What is shown: the texts of each article with their marks, and all elements."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.classes, self.open = [], [], [], []
        self.shown = {("p", "text"): [], ("del", None): [], ("ins", None): []}
        self.texts, self.deleted, self.inserted = self.shown.values()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        kind = (tag, dict(attrs).get("class"))
        self.tags.append(tag)
        self.attributes += dict(attrs)
        if tag not in ("meta", "input"):
            self.open.append(kind)
        if tag == "article":
            self.classes.append(kind[1])
        if kind in self.shown:
            self.shown[kind].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for kind in self.shown.keys() & {*self.open}:
            self.shown[kind][-1] += data


def read(results, tmp_path, **options):
    file = write_report(results, tmp_path / "report.html", **options)
    assert file == tmp_path / "report.html"
    source = file.read_text(encoding="utf-8")
    return Page(source), source


def test_changes_are_marked_before_and_after_and_the_outcome_is_named(tmp_path):
    page, source = read([FOOLED, ROBUST, WRONG, UNTOUCHED], tmp_path, names=["差评", "好评"])
    assert page.classes == ["fooled", "robust", "wrong", "untried"]
    assert page.texts == ["物流很快", "物溜很快", "bad film", "bad flm", "fine", "……"]
    assert (page.deleted, page.inserted) == (["流", "film"], ["溜", "flm"])
    about = [re.sub(r"<[^>]*>|\s+", " ", line).split() for line in re.findall(r'<p class="about">.*', source)]
    assert [[word for word in line if word in ("差评", "好评")] for line in about] == [
        ["好评", "好评", "差评"],
        ["差评", "差评", "差评"],
        ["好评", "差评", "差评"],
        ["好评", "好评", "好评"],
    ]
    assert "33.3% of 3 texts" in source
    counts = dict(re.findall(r'<label for="(\w+)">[\w ]+ <b>(\d+)</b>', source))
    assert counts == {"all": "4", "fooled": "1", "robust": "1", "wrong": "1", "untried": "1"}


def test_each_outcome_has_a_button_and_a_rule_that_hides_the_others(tmp_path):
    page, source = read([FOOLED], tmp_path)
    assert page.tags.count("input") == page.tags.count("label") == 5
    for key in ("fooled", "robust", "wrong", "untried"):
        assert f'id="{key}"' in source and f"#{key}:checked ~ main article:not(.{key})" in source


def test_texts_are_data(tmp_path):
    changed = Attacked(EVIL, EVIL[:8] + "<b>" + EVIL[9:], 0, 1, True, ((EVIL[8], "<b>"),), 3, starts=(8,), tried=2)
    plain, _ = read([FOOLED, WRONG], tmp_path, names=["no", "yes"], title="plain")
    page, source = read([changed, WRONG], tmp_path, names=[EVIL, EVIL], title=EVIL)
    assert page.tags == plain.tags
    assert page.texts[:2] == [changed.original, changed.text]
    assert "<script" not in source and "<!-- " not in source
    assert "default-src 'none'" in source


def test_the_page_loads_nothing(tmp_path):
    page, source = read([FOOLED], tmp_path)
    assert not {"link", "img", "script", "iframe", "object", "a"} & set(page.tags)
    assert not {"src", "href", "onclick"} & set(page.attributes)
    assert "url(" not in source and "@import" not in source and "http" not in re.sub("http-equiv", "", source)


@settings(max_examples=60)
@given(st.text(), st.text(max_size=3), st.text(max_size=3), st.text())
def test_any_text_is_shown_as_it_is(tmp_path_factory, left, before, after, right):
    each = Attacked(left + before + right, left + after + right, 0, 1, True, ((before, after),), 3, (len(left),), 2)
    page, source = read([each], tmp_path_factory.mktemp("report"))
    shown = [seen(left + before + right), seen(left + after + right)]
    assert page.texts == shown
    assert (page.deleted, page.inserted) == ([seen(before)], [seen(after)])
    assert source.encode("utf-8")


def seen(text):
    """Controls are shown by number."""
    return (
        "".join(f"\\x{ord(c):02x}" if ord(c) < 160 and not c.isprintable() and c not in "\t\n" else c for c in text)
        .replace("\ufffe", "\ufffd")
        .replace("\uffff", "\ufffd")
    )


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ([], {}, "`results` to hold"),
        ([FOOLED], {"names": ["one"]}, "`names` to hold a name for each label, but got 1 for label 1"),
        ([Attacked("a", "b", 0, 1, True, (("a", "b"),), 3)], {}, "`changes` and `starts` to make the attacked text"),
        ([Attacked("a", "b", 0, 1, True, (("a", "c"),), 3, (0,))], {}, "`changes` and `starts`"),
        ([Attacked("a", "b", 0, 1, True, (), 3)], {}, "`changes` and `starts`.* Give the results of an attack"),
    ],
)
def test_what_it_refuses(results, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_report(results, tmp_path / "report.html", **options)
    assert not list(tmp_path.iterdir())
