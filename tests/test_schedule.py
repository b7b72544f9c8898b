"""``start``, ``every`` and ``warmup`` in any loop, and ``warmup="auto"`` against its formula."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from fastNLP import Callback, CheckpointCallback
from support import Classifier, build, distance, samples, train, weights

from fastnlp_adv import (
    FGM,
    PGD,
    VAT,
    FGMCallback,
    PGDCallback,
    RDrop,
)
from fastnlp_adv.schedule import FALL, FIRST_STEPS, Pacing

ACCUMULATION = 2


def batches(n, size=4):
    found = samples(n * size)
    return [
        {key: torch.stack([each[key] for each in found[i : i + size]]) for key in ("input_ids", "labels")}
        for i in range(0, n * size, size)
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2)


def plain_loop(model, method, data, accumulation=ACCUMULATION):
    optimizer = sgd(model)
    total = len(data) / accumulation
    for number, batch in enumerate(data, 1):
        method.step(
            lambda each: model.train_step(**each)["loss"] / accumulation,
            batch,
            accumulation_steps=accumulation,
            total_steps=total,
        )
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def with_accelerate(model, method, data, accumulation=ACCUMULATION):
    GradientState._reset_state()  # which all trainings of a process share, those of transformers' Trainer too
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    prepared, optimizer = accelerator.prepare(model, sgd(model))
    told = {"accumulation_steps": accumulation, "total_steps": len(data) / accumulation}
    for batch in data:
        with accelerator.accumulate(prepared), method.running(batch, **told) as passes:
            for each in passes:
                loss = model.train_step(**each.of(batch))["loss"]
                method.observe(loss, each)
                if each.trains:
                    accelerator.backward(loss * each.weight)
                else:
                    method.differentiate(loss)
        optimizer.step()
        optimizer.zero_grad()


def with_drive(model, method, data, accumulation=ACCUMULATION):
    optimizer = sgd(model)
    told = {"accumulation_steps": accumulation, "total_steps": len(data) / accumulation}

    def backward(loss, each):
        (loss / accumulation).backward()

    for number, batch in enumerate(data, 1):
        method.drive(lambda each, batch=batch: model.train_step(**each.of(batch))["loss"], backward, batch, **told)
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()


def in_the_trainer(model, callback, n_batches, accumulation=ACCUMULATION):
    train(
        model,
        [callback],
        optimizers=sgd(model),
        data=samples(4 * n_batches),
        n_epochs=1,
        n_batches=-1,
        accumulation_steps=accumulation,
    )


SCHEDULES = [
    {"start": 3},
    {"start": 0.3, "every": 3},
    {"warmup": 7},
    {"warmup": 0.5, "start": 2},
    {"warmup": 1.0},
    {"warmup": "auto", "every": 2},
    {"warmup": "auto", "start": 0.5},
]


@pytest.mark.parametrize(
    ("loop", "schedule"),
    [
        *((plain_loop, schedule) for schedule in SCHEDULES),
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
    in_the_trainer(theirs, FGMCallback(epsilon=0.5, **schedule), 60)
    in_the_trainer(plain, FGMCallback(epsilon=0.0), 60)
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
    train(
        model,
        [made, trace],
        optimizers=sgd(model),
        data=samples(160),
        n_epochs=1,
        n_batches=-1,
        accumulation_steps=accumulation,
    )
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
    whole, halves, resumed = Trace(), Trace(), Trace()
    saver = CheckpointCallback(folder=tmp_path, every_n_batches=16, save_object="trainer")
    models = [Classifier(dropout=0.0) for _ in range(3)]
    train(models[0], [FGMCallback(0.5, warmup="auto"), whole], optimizers=sgd(models[0]), **arguments)
    train(models[1], [FGMCallback(0.5, warmup="auto"), halves, saver], optimizers=sgd(models[1]), **arguments)
    trainer = build(models[2], [FGMCallback(0.5, warmup="auto"), resumed], optimizers=sgd(models[2]), **arguments)
    trainer.run(resume_from=str(next(tmp_path.rglob("trainer-*batch_16"))))
    assert whole.norms[16:] == resumed.norms and max(resumed.norms) > 0
    assert torch.equal(weights(models[0]), weights(models[2]))


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
