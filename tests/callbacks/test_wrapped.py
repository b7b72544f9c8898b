"""R-Drop runs once, with the callback's settings, wherever the model hides."""

from __future__ import annotations

import pytest
import torch
from support import Classifier, build, loader, train, weights
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import R3FCallback, RDropCallback, RDropMixin, RobustEvaluateCallback, SMARTCallback, VATCallback


class Counts(Classifier):
    """Counts the rows of each forward of its layers."""

    def __init__(self, **kwargs):
        super().__init__(**{"dropout": 0.3, **kwargs})
        self.rows = []
        self.head.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))


class Own(RDropMixin, Counts):
    """R-Drop of its own, with settings that the callback is to replace."""

    rdrop_kl_weight = 7.0
    rdrop_reduction = "sum"


class PlainForward(Counts):
    """Returns its loss from ``forward``."""

    def forward(self, input_ids, labels):
        pred = super().forward(input_ids)
        return {"loss": cross_entropy(pred, labels), "pred": pred}

    def train_step(self, input_ids, labels):
        return self(input_ids, labels)


class OwnForward(RDropMixin, PlainForward):
    rdrop_kl_weight = 7.0


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def train_step(self, input_ids, labels):
        return self.inner.train_step(input_ids, labels)


def peft_of(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=["head"], r=2))


WRAPPED = {
    "bare": (lambda m: m, {}, Own, Counts),
    "train_fn": (lambda m: m, {"train_fn": "forward"}, OwnForward, PlainForward),
    "data parallel": (nn.DataParallel, {}, OwnForward, PlainForward),
    "wrapper": (Wrapper, {}, Own, Counts),
    "compiled": (lambda m: torch.compile(m, backend="eager"), {}, Own, Counts),
    "peft": (peft_of, {}, Own, Counts),
}


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
@pytest.mark.parametrize("name", WRAPPED)
def test_rdrop_callback_on_a_mixin_model_runs_once_with_its_own_settings(name, mode):
    wrap, kwargs, own, plain = WRAPPED[name]
    models = [own(), plain()]
    for model in models:
        train(wrap(model), [RDropCallback(0.5, mode=mode)], n_batches=6, **kwargs)
    assert models[0].rows == models[1].rows == ([8] * 6 if mode == "concat" else [4] * 12)
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("callback, extra", [(VATCallback, 2), (SMARTCallback, 2), (R3FCallback, 1)])
@pytest.mark.parametrize("mode", ["concat", "two_pass", None])
def test_extra_forwards_run_a_mixin_model_once(callback, extra, mode):
    model = Own()
    train(model, [callback(), *([RDropCallback(mode=mode)] if mode else [])], n_batches=6)
    first = [8] if mode == "concat" else [4, 4]
    assert model.rows == (first + [4] * extra) * 6


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
def test_robust_evaluation_runs_the_step_of_a_mixin_model_once(mode):
    model, steps = Own(), 2
    model.rdrop_mode = mode
    callback = RobustEvaluateCallback(loader(), steps=steps, restarts=1, num_eval_sanity_batch=1)
    build(model, [callback])
    assert model.rows == [4] * (1 + steps + 1 + 1)  # clean, the search, and where evaluate_step is asked
