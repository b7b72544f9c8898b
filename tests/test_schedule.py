"""``start``, ``every`` and ``warmup`` in any loop, and ``warmup="auto"`` against its formula."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from fastNLP import Callback, CheckpointCallback
from support import Classifier, build, collate, distance, samples, train, weights

from fastnlp_adv import FGM, PGD, VAT, FGMCallback, PGDCallback, RDrop
from fastnlp_adv.schedule import FALL, FIRST_STEPS, Pacing

ACCUMULATION = 2


def batches(n):
    found = [{key: each[key] for key in ("input_ids", "labels")} for each in samples(4 * n)]
    return [collate(found[i : i + 4]) for i in range(0, 4 * n, 4)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2)


def told(data):
    return {"accumulation_steps": ACCUMULATION, "total_steps": len(data) / ACCUMULATION}


def each_batch(model, data, run):
    optimizer = sgd(model)
    for number, batch in enumerate(data, 1):
        run(batch, **told(data))
        if number % ACCUMULATION == 0:
            optimizer.step()
            optimizer.zero_grad()


def plain_loop(model, method, data):
    def loss(fields):
        return model.train_step(**fields)["loss"] / ACCUMULATION

    each_batch(model, data, lambda batch, **told: method.step(loss, batch, **told))


def with_drive(model, method, data):
    def run(batch, **told):
        method.drive(lambda each: model.train_step(**each.of(batch))["loss"], backward, batch, **told)

    def backward(loss, each):
        (loss / ACCUMULATION).backward()

    each_batch(model, data, run)


def with_accelerate(model, method, data):
    GradientState._reset_state()  # which all trainings of a process share, those of transformers' Trainer too
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    prepared, optimizer = accelerator.prepare(model, sgd(model))
    for batch in data:
        with accelerator.accumulate(prepared), method.running(batch, **told(data)) as passes:
            for each in passes:
                loss = model.train_step(**each.of(batch))["loss"]
                method.observe(loss, each)
                if each.trains:
                    accelerator.backward(loss * each.weight)
                else:
                    method.differentiate(loss)
        optimizer.step()
        optimizer.zero_grad()


def in_the_trainer(model, callbacks, n_batches, accumulation=ACCUMULATION):
    """Train for one epoch of so many batches."""
    whole = {"n_epochs": 1, "n_batches": -1, "accumulation_steps": accumulation}
    train(model, callbacks, optimizers=sgd(model), data=samples(4 * n_batches), **whole)


@pytest.mark.parametrize(
    ("loop", "schedule"),
    [
        (plain_loop, {"start": 0.3, "every": 3}),
        (plain_loop, {"warmup": 0.5, "start": 2}),
        (plain_loop, {"warmup": "auto", "start": 0.5}),
        (with_accelerate, {"warmup": "auto", "start": 0.5}),
        (with_drive, {"warmup": "auto", "start": 0.5}),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_a_loop_of_ones_own_trains_as_the_trainer_does(loop, schedule):
    """Thirty optimizer steps of two micro-batches each."""
    ours, theirs, plain = (Classifier(dropout=0.0) for _ in range(3))
    torch.manual_seed(1)
    loop(ours, FGM(ours, epsilon=0.5, **schedule), batches(60))
    in_the_trainer(theirs, [FGMCallback(epsilon=0.5, **schedule)], 60)
    in_the_trainer(plain, [], 60)
    assert distance(ours, theirs) < 1e-6
    assert distance(ours, plain) > 1e-4


@pytest.mark.parametrize("loop", [plain_loop, with_accelerate, with_drive])
def test_a_loop_of_ones_own_logs_once_what_is_perturbed(loop, caplog):
    caplog.set_level(logging.INFO, logger="fastnlp_adv")
    model = Classifier(dropout=0.0)
    fgm = FGM(model, epsilon=0.5)
    line = fgm.describe()
    loop(model, fgm, batches(4))
    assert caplog.messages.count(line) == 1 and line.startswith("FGM perturbs `word_embeddings.weight` (")


def test_the_passes_of_an_attack_are_one_batch_of_a_regularizer():
    model = Classifier()
    fgm, rdrop, vat = FGM(model), RDrop(every=2), VAT(model, every=2)
    for batch in batches(4):

        def step(each):
            return model.train_step(**each)

        fgm.step(lambda each: vat(lambda b: rdrop(step, b), each, step)["loss"], batch)
    assert fgm.progress.batches == rdrop.progress.batches == vat.progress.batches == 4


class Trace(Callback):
    """The clean loss and the norm of the perturbation of each batch."""

    def __init__(self):
        super().__init__()
        self.losses, self.norms = [], []

    def on_before_backward(self, trainer, outputs):
        self.losses.append(float(outputs["loss"]))

    def on_train_batch_begin(self, trainer, batch, indices):
        trainer.state.get("adv", {}).pop("perturbation_norm", None)

    def on_train_batch_end(self, trainer):
        self.norms.append(float(trainer.state["adv"].get("perturbation_norm", 0.0)))


def strengths(losses, accumulation=1):
    """The definition, in Python's numbers."""
    steps = [sum(losses[i : i + accumulation]) / accumulation for i in range(0, len(losses), accumulation)]
    first = sum(steps[:FIRST_STEPS]) / FIRST_STEPS
    average, found = first, [0.0] * FIRST_STEPS
    for loss in steps[FIRST_STEPS:]:
        found.append(min(max((1 - average / first) / FALL, 0.0), 1.0))
        average += 0.1 * (loss - average)
    return [each for each in found for _ in range(accumulation)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "callback",
    [
        lambda: FGMCallback(0.5, warmup="auto"),
        lambda: PGDCallback(0.5, steps=2, warmup="auto"),
        lambda: FGMCallback(0.5, warmup="auto", granularity="sequence", fraction=0.5),
    ],
)
def test_the_perturbation_grows_as_the_loss_falls(callback, accumulation):
    trace, made, model = Trace(), callback(), Classifier()
    in_the_trainer(model, [made, trace], 40, accumulation)
    examples = 1 if made.granularity == "vocab" else math.sqrt(2)
    expected = [0.5 * examples * each for each in strengths(trace.losses, accumulation)]
    assert max(expected) > 0 and expected[:FIRST_STEPS] == [0.0] * FIRST_STEPS
    assert trace.norms == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_loss_that_is_not_finite_is_left_out():
    pacing = Pacing()
    for step, loss in enumerate([1.0, float("nan"), 1.0, float("inf"), 1.0, 0.8, float("nan"), 0.9]):
        pacing.note(torch.tensor(loss), step)
    pacing.begin_step(8)
    assert pacing.first == 1.0
    assert float(pacing.average) == pytest.approx(1 + 0.1 * (0.8 - 1) + 0.1 * (0.9 - 0.98))


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan")])
def test_a_loss_that_is_not_positive_cannot_be_followed(loss):
    pacing = Pacing()
    for step in range(5):
        pacing.note(torch.tensor(loss), step)
    with pytest.raises(ValueError, match=r"Expected a positive loss with `warmup='auto'`, but got .*`warmup=1\.0`"):
        pacing.begin_step(5)


def test_a_resumed_training_goes_on_with_the_strength_that_it_had(tmp_path):
    arguments = {"data": samples(96), "n_epochs": 1, "n_batches": -1, "accumulation_steps": 2}
    whole, rest, one, other = Trace(), Trace(), Classifier(dropout=0.0), Classifier(dropout=0.0)
    saver = CheckpointCallback(folder=tmp_path, every_n_batches=16, save_object="trainer")
    train(one, [FGMCallback(0.5, warmup="auto"), whole, saver], optimizers=sgd(one), **arguments)
    trainer = build(other, [FGMCallback(0.5, warmup="auto"), rest], optimizers=sgd(other), **arguments)
    trainer.run(resume_from=str(next(tmp_path.rglob("trainer-*batch_16"))))
    assert whole.norms[16:] == rest.norms and max(rest.norms) > 0
    assert torch.equal(weights(one), weights(other))


def test_the_log_says_where_it_stands_at_the_end_of_an_epoch(said):
    model = Classifier()
    train(model, [FGMCallback(warmup="auto")], optimizers=sgd(model), n_batches=12)
    lines = [each.getMessage() for each in said.records if "of its value" in each.getMessage()]
    assert len(lines) == 2
    assert lines[-1].startswith("FGM: epsilon at 0.") and "since the loss has fallen from" in lines[-1]


# What a loop has to tell.


@pytest.mark.parametrize("arguments", [{"start": 0.5}, {"warmup": 0.5}, {"warmup": 1.0}], ids=str)
def test_a_fraction_of_a_training_needs_its_steps(arguments):
    model = Classifier()
    fgm = FGM(model, **arguments)
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"Expected `total_steps`, since `{name}=.*` is a fraction of the training"):
        fgm.step(lambda each: model.train_step(**each)["loss"], batches(1)[0])


@pytest.mark.parametrize("arguments", [{"start": 2}, {"every": 2}], ids=str)
def test_attack_cannot_leave_a_step_out(arguments):
    model = Classifier()
    for attack in (lambda: FGM(model, **arguments).attack(), lambda: PGD(model, **arguments).attack(lambda: None)):
        with pytest.raises(ValueError, match=r"Expected `start` to be 0 and `every` to be 1 .*Use `step\(closure\)`"):
            attack()


def test_attack_takes_the_loss_that_the_strength_follows():
    model, losses, norms = Classifier(), [], []
    fgm, optimizer = FGM(model, epsilon=0.5, warmup="auto"), sgd(model)
    for batch in batches(30):
        loss = model.train_step(**batch)["loss"]
        loss.backward()
        with fgm.attack(loss=loss):
            model.train_step(**batch)["loss"].backward()
        losses.append(float(loss))
        norms.append(float(fgm.perturbation_norm))
        optimizer.step()
        optimizer.zero_grad()
    expected = [0.5 * each for each in strengths(losses)]
    assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5) and max(norms) > 0
