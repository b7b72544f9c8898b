"""Every example of the READMEs runs, both languages have the same ones, and the links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import support
import texts
import torch

from benchmarks.methods import METHODS

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh-CN.md"]
DOCS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)


def without_comments(block):
    return re.sub(r" *#.*", "", block)


def test_both_languages_show_the_same_code():
    first, second = ([without_comments(block) for block in blocks(name)] for name in READMES)
    assert len(first) > 5
    assert first == second


class Model(support.Classifier):
    """Callable as ``model(**batch)["loss"]`` as well, as the plain loops of the README do."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        pred = super().forward(input_ids)
        return pred if labels is None else {"loss": torch.nn.functional.cross_entropy(pred, labels), "pred": pred}


@pytest.mark.parametrize("name", READMES)
def test_the_examples_run(name):
    model, tokenizer = Model(), texts.word_piece()
    batch = support.collate(support.samples(4))
    space = {
        "model": model,
        "optimizers": torch.optim.SGD(model.parameters(), lr=0.1),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_dataloader": support.loader(),
        "batch": batch,
        "classifier": texts.bert_for(tokenizer),
        "tokenizer": tokenizer,
        "texts": texts.TEXTS,
        "labels": [1, 0] * 4,
    }
    before = support.weights(model)
    for block in blocks(name):
        exec(compile(block, name, "exec"), space)
    assert not torch.equal(support.weights(model), before)
    outputs = space["MyModel"]().train_step(batch["input_ids"], batch["labels"] % 2)
    assert {"loss", "pred", "pred2", "kl"} <= set(outputs)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", READMES)
def test_every_method_has_a_card(name, method):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert f"\n{method.callback.__name__}(" in text
    assert method.paper in text


@pytest.mark.parametrize("name", [*READMES, "CHANGELOG.md", *DOCS])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / Path(name).parent / target.split("#")[0]).exists(), target
