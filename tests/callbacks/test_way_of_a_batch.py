"""How much of the package a reader has to open to follow one batch from the Trainer to the optimizer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastNLP import Callback
from support import Classifier, train

import fastnlp_adv
from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback

ROOT = str(Path(fastnlp_adv.__file__).parent)


class Watch(Callback):
    """Notes the package's functions that run in the third batch, and how often any is called."""

    def __init__(self):
        super().__init__()
        self.functions, self.calls = set(), 0

    def on_train_batch_begin(self, trainer, batch, indices):
        if trainer.global_forward_batches == 2:
            sys.setprofile(self.note)

    def on_train_batch_end(self, trainer):
        sys.setprofile(None)

    def note(self, frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(ROOT):
            self.calls += 1
            self.functions.add((file, frame.f_code.co_firstlineno, frame.f_code.co_name))

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
