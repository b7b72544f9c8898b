"""When the methods act, what they report, and that the step is a guest in the Trainer."""

import copy

import pytest
import torch
from fastNLP import Callback, logger
from fastNLP.core.controllers.loops import TrainBatchLoop
from rows import Probe
from support import Classifier, loader, samples, train, weights
from torch import nn

from fastnlp_adv import FGMCallback, FGSMCallback, LogCallback, RDropCallback
from fastnlp_adv.callbacks.step import BatchStep


class Forwards(Callback):
    """How many forwards each batch had: two where FGM was due, else one."""

    def __init__(self, model):
        super().__init__()
        self.model, self.counts = model, []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.before = self.model.passes["forward"]

    def on_train_batch_end(self, trainer):
        self.counts.append(self.model.passes["forward"] - self.before)


@pytest.mark.parametrize(
    "schedule, accumulation, expected",
    [
        ({}, 1, [2] * 12),
        ({"start": 5}, 1, [1] * 5 + [2] * 7),
        ({"start": 0.5}, 1, [1] * 6 + [2] * 6),
        ({"start": 0.3}, 1, [1] * 4 + [2] * 8),  # 3.6 steps: the first whole step after them is number 4
        ({"every": 4}, 1, [2, 1, 1, 1] * 3),
        ({"start": 2, "every": 3}, 1, [1, 1] + [2, 1, 1] * 3 + [2]),
        ({"start": 1, "every": 2}, 2, [1, 1, 2, 2] * 3),
        ({"start": 0.5}, 3, [1] * 6 + [2] * 6),
        ({"start": 1}, 4, [1] * 4 + [2] * 8),
    ],
)
def test_start_and_every_count_optimizer_steps(schedule, accumulation, expected):
    model = Probe()
    forwards = Forwards(model)
    train(model, [FGMCallback(**schedule), forwards], accumulation_steps=accumulation, n_batches=-1, n_epochs=2)
    assert forwards.counts == expected


def test_steps_before_the_start_are_bitwise_plain():
    class Keep(Callback):
        def on_train_batch_end(self, trainer):
            seen.append(weights(trainer.model))

    seen = []
    train(Classifier(), [FGMCallback(start=4), Keep()])
    ours, seen = seen, []
    train(Classifier(), [Keep()])
    assert [torch.equal(a, b) for a, b in zip(ours, seen, strict=True)] == [True] * 4 + [False] * (len(seen) - 4)


def one_batch(callbacks, model=None, **kwargs):
    """The state after one step on one batch without dropout, that batch, and the model as it was before."""
    model = Classifier(dropout=0.0) if model is None else model
    before = copy.deepcopy(model)
    trainer = train(model, callbacks, data=samples(4), n_batches=1, **kwargs)
    return trainer.state["adv"], next(iter(loader(samples(4)))), before


def clean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


def test_state_of_fgm():
    state, batch, model = one_batch([FGMCallback(epsilon=0.7)])
    weight = model.word_embeddings.weight
    loss = clean_loss(model, batch)
    (grad,) = torch.autograd.grad(loss, weight)
    weight.data += 0.7 * grad / grad.norm()
    assert set(state) == {"loss", "adv_loss", "grad_norm", "perturbation_norm", "skipped"}
    assert state["loss"].item() == pytest.approx(loss.item())
    assert state["adv_loss"].item() == pytest.approx(clean_loss(model, batch).item())
    assert state["grad_norm"].item() == pytest.approx(grad.norm().item(), rel=1e-5)
    assert state["perturbation_norm"].item() == pytest.approx(0.7, rel=1e-5)
    assert state["skipped"].item() == 0


def test_state_of_fgsm_measures_the_perturbation_of_every_token_type():
    state, batch, _ = one_batch([FGSMCallback(epsilon=0.02)])
    types = len(set(batch["input_ids"].flatten().tolist()) - {0})
    assert state["perturbation_norm"].item() == pytest.approx(0.02 * (types * 8) ** 0.5, rel=1e-4)


def test_state_of_accumulation_is_that_of_the_whole_loss():
    alone, _, _ = one_batch([FGMCallback()])
    divided, _, _ = one_batch([FGMCallback()], accumulation_steps=4)
    assert {k: v.item() for k, v in divided.items()} == pytest.approx({k: v.item() for k, v in alone.items()})


def test_a_log_callback_writes_through_the_logger_of_fastnlp(caplog):
    logger.addHandler(caplog.handler)
    try:
        trainer = train(Classifier(), [FGMCallback(), RDropCallback(), LogCallback(every=5)], n_batches=12)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [r.getMessage() for r in caplog.records if "adv_loss" in r.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["Batch 5", "Batch 10"]
    assert trainer.global_forward_batches == 12
    for name in ("loss=", "adv_loss=", "kl=", "grad_norm=", "perturbation_norm=1,", "skipped=0"):
        assert name in lines[0]


def test_one_step_serves_all_callbacks_and_leaves_with_the_last():
    class Look(Callback):
        def on_train_batch_begin(self, trainer, batch, indices):
            found.append(trainer.train_batch_loop.batch_step_fn)

    found = []
    trainer = train(Classifier(), [FGMCallback(), Look(), RDropCallback()])
    assert len(set(map(id, found))) == 1
    assert isinstance(found[0], BatchStep)
    assert trainer.train_batch_loop.batch_step_fn is TrainBatchLoop.batch_step_fn
