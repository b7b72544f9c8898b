"""Every method in a plain loop: a step that fails leaves no trace, a state resumes, half precision trains."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from rows import Probe, each_method, each_row, step_of
from support import assert_untouched, collate, samples, snapshot, weights
from torch.utils._pytree import tree_map

from fastnlp_adv.regularizers import Regularizer

BATCH = collate(samples(4))
del BATCH["attention_mask"]


def predictions(model):
    with torch.no_grad():
        return model.eval()(BATCH["input_ids"]), model.train()


def remembered(method):
    """What it keeps, but for random streams, from which a failing step may have drawn, and counts of forward passes."""
    streams = ("noise", "choice", *(("batches",) if isinstance(method, Regularizer) else ()))
    kept = {name: value for name, value in method.state_dict().items() if name not in streams}
    return tree_map(lambda value: value.tolist() if isinstance(value, torch.Tensor) else value, kept)


def train(method, model, steps, first=0):
    """A loop with momentum, which draws its dropout masks from the number of the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first, first + steps):
        torch.manual_seed(step)
        step_of(method, model, BATCH)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(method, Regularizer):
            method.after_step()


@each_row
@pytest.mark.parametrize("where, error", [("forward", ValueError), ("backward", KeyboardInterrupt)])
def test_a_step_that_fails_leaves_no_trace(row, where, error):
    model = Probe()
    method = row.attach(model)
    train(method, model, 1)  # so that there is something to remember
    model.zero_grad()
    kept, (output, _) = remembered(method), predictions(model)
    for number in range(row.passes[where]):
        for opens in (False, True):  # what a step finds closed, it leaves closed
            if opens:
                method.open()
            before = snapshot(model)
            model.fail(where, model.passes[where] + number, error)
            with pytest.raises(error, match="made to fail"):
                step_of(method, model, BATCH)
            assert_untouched(model, before)
            assert torch.equal(predictions(model)[0], output)
            assert remembered(method) == kept
            method.close()
    model.failure = None
    other = copy.deepcopy(model)
    fresh = row.attach(other)
    fresh.load_state_dict(method.state_dict())
    for each, of in ((method, model), (fresh, other)):
        of.zero_grad()
        train(each, of, 1, first=1)  # and it goes on
    assert torch.equal(weights(model), weights(other))


@each_row
def test_a_state_resumes(row):
    """By way of a file that holds tensors and plain values alone."""
    whole, halves, resumed = Probe(), Probe(), Probe(seed=1)
    torch.manual_seed(0)  # streams of noise begin at it
    train(row.attach(whole), whole, 4)
    torch.manual_seed(0)
    method = row.attach(halves)
    train(method, halves, 2)
    file = io.BytesIO()
    torch.save({"model": halves.state_dict(), "method": method.state_dict()}, file)
    train(method, halves, 2, first=2)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    method = row.attach(resumed)
    method.load_state_dict(state["method"])
    train(method, resumed, 2, first=2)
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(halves), weights(whole))  # which a state that was taken does not change


@each_method
def test_half_precision_trains(row):
    model = Probe().bfloat16()
    method = row.attach(model)
    for step in range(2):
        before = snapshot(model)
        torch.manual_seed(step)
        step_of(method, model, BATCH)
        assert_untouched(model, before)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.bfloat16 for p in model.parameters())
