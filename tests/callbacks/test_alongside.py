"""The methods beside what else a Trainer does: clipping, warmup, evaluation, progress, DataParallel, compiling."""

import copy

import pytest
import torch
from fastNLP import Accuracy, Callback, TorchGradClipCallback, TorchWarmupCallback, Trainer, logger
from rows import each_row
from support import (
    Classifier,
    build,
    distance,
    loader,
    samples,
    snapshot,
    textbook_fgm,
    textbook_pgd,
    train,
    weights,
)
from torch import nn

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback

OTHERS = {
    "clip by norm": lambda: TorchGradClipCallback(clip_value=0.05, clip_type="norm"),
    "clip by value": lambda: TorchGradClipCallback(clip_value=0.01, clip_type="value"),
    "warmup": lambda: TorchWarmupCallback(warmup=0.5),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("callback, textbook", [(FGMCallback, textbook_fgm), (PGDCallback, textbook_pgd)])
def test_callbacks_that_work_on_gradients_or_rates_see_what_they_see_in_the_textbook(callback, textbook, other):
    ours, theirs, without = Classifier(), Classifier(), Classifier()
    train(ours, [other(), callback()], accumulation_steps=2)
    train(theirs, [other()], batch_step_fn=textbook(theirs), accumulation_steps=2)
    train(without, [callback()], accumulation_steps=2)
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, without) > 1e-3


class Results(Callback):
    def __init__(self):
        super().__init__()
        self.results = []

    def on_evaluate_end(self, trainer, results):
        self.results.append(dict(results))


def evaluating(model, callbacks, **kwargs):
    """Train with an evaluation every second batch, and return what it gave."""
    results, held_out = Results(), loader(samples(40, seed=7))
    arguments = {"evaluate_dataloaders": held_out, "metrics": {"acc": Accuracy()}, "evaluate_every": 2, "lr": 0.5}
    trainer = train(model, [*callbacks, results], **arguments, **kwargs)
    return trainer, results.results


def test_evaluation_in_training_sees_the_clean_model():
    ours, theirs = Classifier(), Classifier()
    trainer, seen = evaluating(ours, [FGMCallback()], n_batches=12)
    _, expected = evaluating(theirs, [], batch_step_fn=textbook_fgm(theirs), n_batches=12)
    assert distance(ours, theirs) < 1e-5
    assert seen == expected
    assert len(seen) == 6
    assert len({result["acc#acc"] for result in seen}) > 1
    assert trainer.evaluator.run() == seen[-1]


@each_row
def test_every_method_evaluates_in_training(row):
    _, seen = evaluating(Classifier(), [row.callback()], data=samples(12))
    assert len(seen) == 3


def showing(model, callbacks, progress_bar, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    where = {"driver": "torch", "device": "cpu", "progress_bar": progress_bar}
    trainer = Trainer(model, loader(), optimizer, n_epochs=1, callbacks=callbacks, **where)
    trainer.run()
    return trainer


@pytest.mark.parametrize("progress_bar", ["raw", "rich", "tqdm"])
def test_progress_bars_work(progress_bar):
    trainer = showing(Classifier(), [FGMCallback(), RDropCallback()], progress_bar)
    assert trainer.global_forward_batches == 6


def test_progress_shows_the_clean_loss(caplog):
    """With a learning rate of 0 the clean loss of a batch is known, however often the model runs on it."""
    model = Classifier(dropout=0.0)
    logger.addHandler(caplog.handler)
    try:
        showing(model, [PGDCallback(steps=2)], "raw", lr=0.0)
    finally:
        logger.removeHandler(caplog.handler)
    shown = [float(r.getMessage().split("loss:")[1].split(",")[0]) for r in caplog.records if "loss:" in r.getMessage()]
    clean = [model.train_step(batch["input_ids"], batch["labels"])["loss"].item() for batch in loader()]
    assert shown == pytest.approx(clean, abs=2e-6)


class Forward(nn.Module):
    """What DataParallel runs: a model whose ``forward`` is the training step."""

    def __init__(self):
        super().__init__()
        self.model = Classifier()

    def forward(self, input_ids, labels):
        return self.model.train_step(input_ids, labels)


@pytest.mark.parametrize("callback", [FGMCallback, PGDCallback, RDropCallback])
def test_data_parallel_on_one_device_trains_as_without(callback):
    wrapped, bare = Forward(), Forward()
    trainer = build(nn.DataParallel(wrapped), [callback()])
    torch.manual_seed(1)
    trainer.run()
    train(bare, [callback()])
    assert torch.equal(weights(wrapped), weights(bare))


class Bag(Classifier):
    """A model that compiles to one graph, with the lookup in it."""

    def forward(self, input_ids):
        return self.head(self.dropout(self.word_embeddings(input_ids)).mean(1).tanh())


@pytest.mark.parametrize("make", [FGMCallback, PGDCallback, lambda: FGMCallback(start=3, every=2)])
@pytest.mark.parametrize("run", [train, evaluating])
def test_compiled_model_trains_as_without(make, run):
    model, plain = Bag(), Bag()
    before = snapshot(model)[1:]
    model.compile(backend="eager")
    run(model, [make()])
    run(plain, [make()])
    torch.compiler.reset()
    assert distance(model, plain) < 1e-5
    assert snapshot(model)[1:] == before


def test_several_optimizers():
    def optimizers(model):
        head = list(model.head.parameters())
        rest = [p for n, p in model.named_parameters() if not n.startswith("head")]
        return [torch.optim.SGD(head, lr=0.1), torch.optim.Adam(rest, lr=1e-3)]

    ours, theirs = Classifier(), Classifier()
    train(ours, [FGMCallback()], optimizers=optimizers(ours))
    train(theirs, batch_step_fn=textbook_fgm(theirs), optimizers=optimizers(theirs))
    assert distance(ours, theirs) < 1e-5


def test_output_mapping_and_input_mapping_are_followed():
    class Renamed(Classifier):
        def train_step(self, ids, labels):
            outputs = super().train_step(ids, labels)
            return {"my_loss": outputs["loss"], "my_scores": outputs["pred"]}

    ours, theirs = Renamed(), Classifier()
    mapping = {"output_mapping": {"my_loss": "loss", "my_scores": "pred"}, "input_mapping": {"input_ids": "ids"}}
    train(ours, [FGMCallback(), RDropCallback()], **mapping)
    train(theirs, [FGMCallback(), RDropCallback()])
    assert torch.equal(weights(ours), weights(theirs))


def test_trainer_of_a_deepcopied_callback():
    callback = FGMCallback(start=2)
    first, second = Classifier(), Classifier()
    train(first, [callback])
    train(second, [copy.deepcopy(callback)])
    assert torch.equal(weights(first), weights(second))
