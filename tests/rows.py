"""Every callback of the package, one row each, and a model that counts its passes and fails when told to.

The suites over all callbacks read these rows: a new method is covered by adding its row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from support import Classifier

from fastnlp_adv import FGMCallback, FGSMCallback, PGDCallback, RDropCallback
from fastnlp_adv.callbacks import MethodCallback


@dataclass(frozen=True)
class Row:
    """
    :param callback: makes the callback; takes further arguments.
    :param passes: forward passes of a step, each followed by its backward pass.
    """

    callback: Callable[..., MethodCallback]
    passes: int


ROWS = {
    "fgm": Row(FGMCallback, 2),
    "fgm-sequence": Row(partial(FGMCallback, granularity="sequence"), 2),
    "fgm-replace": Row(partial(FGMCallback, replace=True), 2),
    "fgm-weights": Row(partial(FGMCallback, emb_name="head"), 2),
    "fgsm": Row(FGSMCallback, 2),
    "pgd": Row(PGDCallback, 4),
    "pgd-token": Row(partial(PGDCallback, granularity="token", steps=2), 3),
    "pgd-replace": Row(partial(PGDCallback, replace=True), 4),
    "pgd-random": Row(partial(PGDCallback, random_init=True), 5),
    "pgd-weights": Row(partial(PGDCallback, emb_name="*e*"), 4),  # the embedding, and parameters that are not looked up
    "rdrop": Row(RDropCallback, 1),
    "rdrop-two-pass": Row(partial(RDropCallback, mode="two_pass"), 2),
}

#: ``@each_row`` runs a test once a row, with the row as its argument
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


class Probe(Classifier):
    """A Classifier that counts forward and backward passes; ``fail`` makes a later one raise."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.passes = {"forward": 0, "backward": 0}
        self.failure = None

    def fail(self, where, number, error):
        """Raise ``error`` in the forward or backward pass of this number, counted from 0."""
        self.failure = (where, number, error)

    def train_step(self, input_ids, labels):
        self.count("forward")
        outputs = super().train_step(input_ids, labels)
        if outputs["pred"].requires_grad:
            outputs["pred"].register_hook(lambda grad: self.count("backward"))
        return outputs

    def count(self, where):
        if self.failure is not None and self.failure[:2] == (where, self.passes[where]):
            raise self.failure[2]("made to fail")
        self.passes[where] += 1
