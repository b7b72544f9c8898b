"""How much of the package a reader has to open to follow one batch from the Trainer to the optimizer."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from fastNLP import Callback
from pages import read
from support import Classifier, train

import fastnlp_adv
from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback

PAGE = "docs/how_the_step_works.md"
ROOT = str(Path(fastnlp_adv.__file__).parent)


class Watch(Callback):
    """Notes the package's functions that run in the third batch, and how often any is called."""

    def __init__(self):
        super().__init__()
        self.functions, self.calls = {}, 0

    def on_train_batch_begin(self, trainer, batch, indices):
        if trainer.global_forward_batches == 2:
            sys.setprofile(self.note)

    def on_train_batch_end(self, trainer):
        sys.setprofile(None)

    def note(self, frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            self.calls += 1
            function = (file[len(ROOT) + 1 :], frame.f_code.co_firstlineno, frame.f_code.co_name)
            self.functions.setdefault(function, self.calls)

    @property
    def files(self):
        return {file for file, *_ in self.functions}


@pytest.mark.parametrize(
    "callbacks, files, functions, calls",
    [([FGMCallback], 8, 40, 60), ([PGDCallback, RDropCallback], 14, 85, 448)],
)
def test_a_batch_crosses_few_files_and_functions(callbacks, files, functions, calls):
    watch = Watch()
    train(Classifier(dropout=0.3), [watch, *(callback() for callback in callbacks)], n_batches=6)
    assert 5 < len(watch.files) <= files
    assert len(watch.functions) <= functions
    assert watch.calls <= calls


@pytest.fixture(scope="module")
def fgm():
    watch = Watch()
    train(Classifier(dropout=0.3), [watch, FGMCallback(epsilon=1.0)], n_batches=3)
    return watch


@pytest.mark.parametrize("page", [PAGE, PAGE.replace("docs/", "docs/zh-CN/")])
def test_the_page_names_the_functions_in_their_order_and_every_file(page, fgm):
    first_calls = {}
    for (file, _, name), call in fgm.functions.items():
        first_calls.setdefault((file, name), call)
    rows = re.findall(r"^\| \d+ \| \[`(.+?)`\]\(.+?\) (.+?) \|", read(page), flags=re.M)
    steps = [(file, name) for file, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert {file for file, _ in steps} == fgm.files
    calls = [first_calls[step] for step in steps]
    assert calls == sorted(calls)


def test_the_page_has_the_limits(fgm):
    limits = re.search(r"(\d+) files and\s+(\d+) functions in (\d+) calls", read(PAGE)).groups()
    assert (len(fgm.files), len(fgm.functions), fgm.calls) == (*map(int, limits),)
