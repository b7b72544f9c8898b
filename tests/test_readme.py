"""Every example of the READMEs and pages runs, both languages have the same ones, and the links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import support
import texts
import torch

from benchmarks.methods import METHODS

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
#: what stands in both languages, English first
TWINS = [
    tuple(READMES),
    *((f"docs/{path.name}", f"docs/zh-CN/{path.name}") for path in sorted((ROOT / "docs/zh-CN").glob("*.md"))),
]
DOCS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)


def without_comments(block):
    return re.sub(r" *#.*", "", block)


def quickstart(name):
    """Take the first block of a README, a program by itself."""
    return blocks(name)[0]


@pytest.mark.parametrize("names", TWINS, ids=[english for english, _ in TWINS])
def test_both_languages_show_the_same_code(names):
    first, second = ([without_comments(block) for block in blocks(name)] for name in names)
    assert first == second


@pytest.mark.parametrize("name", READMES)
def test_the_readme_is_short(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1300
    assert len(quickstart(name).splitlines()) < 40


def test_the_quickstart_runs_in_an_empty_folder(tmp_path):
    (tmp_path / "quickstart.py").write_text(quickstart("README.md"), encoding="utf-8")
    command = [sys.executable, "quickstart.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(plain|FGM) +epsilon 0.0: +([\d.]+)% .* epsilon 0.2: +([\d.]+)%$", done.stdout, flags=re.M)
    (plain, clean, attacked), (fgm, clean_too, attacked_too) = rows
    assert (plain, fgm) == ("plain", "FGM")
    assert min(float(clean), float(clean_too)) > 95
    assert float(attacked_too) > float(attacked) + 5


class Model(support.Classifier):
    """Callable as ``model(**batch)["loss"]`` as well, as the plain loops of the README do."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        pred = super().forward(input_ids)
        return pred if labels is None else {"loss": torch.nn.functional.cross_entropy(pred, labels), "pred": pred}


def names_of_the_examples():
    """What the blocks expect to find."""
    model, tokenizer = Model(), texts.word_piece()
    return {
        "model": model,
        "optimizers": torch.optim.SGD(model.parameters(), lr=0.1),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_dataloader": support.loader(),
        "batch": support.collate(support.samples(4)),
        "classifier": texts.bert_for(tokenizer),
        "tokenizer": tokenizer,
        "texts": texts.TEXTS,
        "labels": [1, 0] * 4,
        **{row.callback.__name__: row.callback for row in METHODS.values()},
    }


@pytest.mark.parametrize("name", READMES)
def test_the_three_ways_run(name):
    space = names_of_the_examples()
    before = support.weights(space["model"])
    for block in blocks(name)[1:]:
        exec(compile(block, name, "exec"), space)
    assert not torch.equal(support.weights(space["model"]), before)
    batch = space["batch"]
    outputs = space["MyModel"]().train_step(batch["input_ids"], batch["labels"] % 2)
    assert {"loss", "pred", "pred2", "kl"} <= set(outputs)


@pytest.mark.parametrize("name", [english for english, _ in TWINS[1:] if blocks(english)])
def test_the_examples_of_a_page_run(name):
    space = names_of_the_examples()
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["docs/methods.md", "docs/zh-CN/methods.md"])
def test_every_method_has_a_card(name, method):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert f"\n{method.callback.__name__}(" in text
    assert method.paper in text


@pytest.mark.parametrize("name", READMES)
def test_the_readme_leads_to_every_card(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(re.findall(r"^\| \[[^]]+\]\(docs/[^)]*methods\.md#", text, flags=re.M)) == len(METHODS)


def anchors(path):
    """What the headings of a page can be linked by."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


@pytest.mark.parametrize("name", [*READMES, "CHANGELOG.md", "CONTRIBUTING.md", *DOCS])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            path = ROOT / Path(name).parent / file if file else ROOT / name
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target
