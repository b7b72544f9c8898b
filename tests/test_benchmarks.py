"""The benchmark runs, and its textbook loops do what the callbacks do."""

from __future__ import annotations

import sys

import pytest
import step_time
import support
import torch


def test_the_table_has_a_row_for_each_variant(monkeypatch, capsys):
    small = {"batch": 2, "length": 4, "vocab": 50, "hidden": 32, "layers": 1, "rounds": 2}
    monkeypatch.setattr(sys, "argv", ["step_time.py", *(f"--{name}={value}" for name, value in small.items())])
    step_time.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in step_time.VARIANTS)


class Wrapped(support.Bert):
    """A model with the attribute that the textbook loops ask for the embedding."""

    @property
    def bert(self):
        return self.back_bone


@pytest.mark.parametrize("ours, textbook", [("FGM", "FGM, textbook"), ("PGD-3", "PGD-3, textbook")])
def test_the_textbook_loop_trains_the_same_weights(ours, textbook):
    model, reference = Wrapped(), Wrapped()
    support.train(model, step_time.VARIANTS[ours][0])
    support.train(reference, batch_step_fn=step_time.VARIANTS[textbook][1](reference))
    assert support.distance(model, reference) < 1e-5


def test_the_textbook_r_drop_trains_the_same_weights():
    model, reference = Wrapped(), Wrapped()
    support.train(model, step_time.VARIANTS["R-Drop, two_pass"][0])
    support.train(reference, batch_step_fn=step_time.textbook_rdrop(reference))
    assert support.distance(model, reference) < 1e-5
    assert not torch.equal(support.weights(model), support.weights(Wrapped()))
