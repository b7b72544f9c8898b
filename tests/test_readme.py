"""The READMEs are short, run as printed, say the same in both languages, and lead somewhere."""

from __future__ import annotations

import re
import sys

import pytest
from pages import blocks, broken_links, linked_methods, pages_of_methods, read, without_comments
from processes import run

#: what the quickstart prints: the training, clean accuracy, and accuracy under the stronger attack
ROWS = r"^(plain|FGM) +epsilon 0.0: +([\d.]+)% .* epsilon 0.2: +([\d.]+)%$"
READMES = ["README.md", "README.zh-CN.md"]


def quickstart(name):
    """Take the first block of a README, a program by itself."""
    return blocks(name)[0]


def test_both_languages_show_the_same_code():
    first, second = ([without_comments(block) for block in blocks(name)] for name in READMES)
    assert len(first) > 3
    assert first == second


@pytest.mark.parametrize("name", READMES)
def test_the_readme_is_short(name):
    text = read(name)
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1300
    assert len(quickstart(name).splitlines()) < 40


def test_the_quickstart_comes_first():
    text = read("README.md")
    assert "```python" in text[text.index("\n## Quickstart\n") : text.index("\n## Ways to use it")]
    assert "```python" not in text[: text.index("\n## Quickstart\n")]


def test_the_quickstart_runs_in_an_empty_folder(tmp_path):
    (tmp_path / "quickstart.py").write_text(quickstart("README.md"), encoding="utf-8")
    done = run([sys.executable, "quickstart.py"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(ROWS, done.stdout, flags=re.M)
    (plain, clean, attacked), (fgm, clean_too, attacked_too) = rows
    assert (plain, fgm) == ("plain", "FGM")
    assert min(float(clean), float(clean_too)) > 95
    assert float(attacked_too) > float(attacked) + 5
    for name in (*READMES, "docs/quickstart.md", "docs/zh-CN/quickstart.md"):
        shown = re.findall(ROWS, read(name), flags=re.M)
        assert [row[0] for row in shown] == ["plain", "FGM"]
        for row, now in zip(shown, rows, strict=True):  # another build of torch may round otherwise
            assert [float(each) for each in row[1:]] == pytest.approx([float(each) for each in now[1:]], abs=3), name


def test_the_blocks_run_one_after_the_other():
    space = {}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), space)
    batch = next(iter(space["train"]))
    assert {"loss", "pred", "pred2", "kl"} <= set(space["RDropClassifier"]().train_step(**batch))
    assert space["fgm"].perturbation_norm.item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("name", READMES)
def test_the_table_leads_to_pages_of_methods(name):
    """Those that are chosen for it; docs/methods.md has all."""
    rows = [page for page, _ in linked_methods(name)]
    assert len(rows) == len(set(rows)) > 10
    assert set(rows) <= set(pages_of_methods().values())
    assert f"]({'docs/zh-CN' if 'zh' in name else 'docs'}/methods.md)" in read(name)


@pytest.mark.parametrize("name", [*READMES, "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    assert broken_links(name) == []
