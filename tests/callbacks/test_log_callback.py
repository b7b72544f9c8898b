"""What LogCallback hands on is what the state holds, to every place, in any order, and only when it is due."""

from __future__ import annotations

import sys
import types

import fastNLP
import pytest
import torch
from fastNLP import Accuracy, Callback, FitlogCallback, Trainer
from fastNLP.core.callbacks import fitlog_callback
from pages import blocks
from support import Classifier, build, callback_of, loader, train

from fastnlp_adv import FGMCallback, FreeLBCallback, LogCallback, RDropCallback, VATCallback

METHODS = {
    "no clean pass": (lambda: [FreeLBCallback()], {"adv_loss", "grad_norm", "perturbation_norm", "skipped"}),
    "regularizer": (lambda: [RDropCallback()], {"loss", "kl"}),
    "both": (
        lambda: [FGMCallback(), VATCallback()],
        {"loss", "adv_loss", "vat", "grad_norm", "perturbation_norm", "skipped"},
    ),
}


class Summary:
    """A SummaryWriter as far as it is used."""

    def __init__(self):
        self.scalars = {}

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.scalars.setdefault(global_step, {})[tag] = scalar_value


class Fitlog(types.ModuleType):
    """The module fitlog as far as fastNLP and this package use it."""

    def __init__(self):
        super().__init__("fitlog")
        self.losses, self.calls = {}, []
        for each in ("add_metric", "add_best_metric", "add_other", "finish", "debug", "set_log_dir"):
            setattr(self, each, lambda *args, each=each, **kwargs: self.calls.append(each))

    def add_loss(self, value, step, name=None, epoch=None):
        assert isinstance(step, int) and isinstance(epoch, int)
        self.losses.setdefault(step, {})[name] = value


@pytest.mark.parametrize("methods, names", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("first", [True, False])
def test_every_place_gets_the_state_of_the_batch(methods, names, first):
    rows, summary, fitlog, seen = {}, Summary(), Fitlog(), {}

    def see(trainer):
        seen[trainer.global_forward_batches] = {name: value.item() for name, value in trainer.state["adv"].items()}

    states = callback_of(on_train_batch_end=see)
    log = LogCallback(lambda values, step: rows.update({step: values}), summary, fitlog, every=3)
    train(Classifier(), [log, *methods(), states] if first else [states, *methods(), log], n_batches=12)
    assert rows == {step: seen[step] for step in (3, 6, 9, 12)}
    assert all(set(values) == names for values in rows.values())
    assert len({values.get("loss", values.get("adv_loss")) for values in rows.values()}) == 4
    tagged = {step: {f"adv/{name}": value for name, value in values.items()} for step, values in rows.items()}
    assert summary.scalars == fitlog.losses == tagged


@pytest.mark.parametrize("first", [True, False])
def test_beside_fitlog_callback_in_any_order(monkeypatch, first):
    fitlog = Fitlog()
    monkeypatch.setattr(fitlog_callback, "_module_available", lambda name: True)
    monkeypatch.setattr(fitlog_callback, "fitlog", fitlog, raising=False)
    ours, theirs = LogCallback(fitlog, every=3), FitlogCallback(log_loss_every=1)
    train(
        Classifier(),
        [FGMCallback(), *([ours, theirs] if first else [theirs, ours])],
        n_batches=6,
        n_epochs=1,
        evaluate_dataloaders=loader(),
        metrics={"acc": Accuracy()},
    )
    assert {step: "adv/adv_loss" in losses for step, losses in fitlog.losses.items()} == {
        0: False, 1: False, 2: False, 3: True, 4: False, 5: False, 6: True,
    }  # fmt: skip
    assert fitlog.losses[5]["loss"] == fitlog.losses[6]["adv/loss"]  # fastNLP counts a batch when it is over
    assert fitlog.calls[-1] == "finish" and fitlog.calls.count("add_metric") == 1


def test_nothing_is_read_in_between(monkeypatch):
    """Reading a tensor as a number is what waits for the device."""
    reads = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(1) or 0.5)
    train(Classifier(), [FGMCallback(), LogCallback(Summary(), Fitlog(), every=6)], n_batches=6)
    assert len(reads) == 5


def test_only_the_first_rank_writes():
    summary = Summary()
    log = LogCallback(summary, every=1)
    trainer = train(Classifier(), [FGMCallback()], n_batches=6)
    driver = trainer.driver
    trainer.driver = types.SimpleNamespace(global_rank=1)
    log.on_train_batch_end(trainer)
    assert not summary.scalars
    trainer.driver = driver
    log.on_train_batch_end(trainer)
    assert list(summary.scalars) == [6]


@pytest.mark.parametrize(
    "progress_bar, asked", [("rich", True), ("tqdm", True), ("raw", True), (None, True), (None, False)]
)
def test_progress_bars_take_it_and_without_any_writer_the_log_of_fastnlp(progress_bar, asked, said):
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    where = {"driver": "torch", "device": "cpu", "progress_bar": progress_bar}
    callbacks = [FGMCallback(), LogCallback(every=2, progress_bar=asked)]
    Trainer(model, loader(), optimizer, n_epochs=1, callbacks=callbacks, **where).run()
    lines = [each for each in said.messages if each.startswith("Batch ")]
    assert [line.split(":")[0] for line in lines] == (
        [] if progress_bar in ("rich", "tqdm") else ["Batch 2", "Batch 4", "Batch 6"]
    )
    assert all(" loss=" in line and "adv_loss=" in line for line in lines)


def test_a_trainer_without_methods_is_warned(said):
    trainer = build(Classifier(), [LogCallback(summary := Summary(), every=1)], n_batches=6)
    assert "LogCallback has nothing to log" in said.text
    trainer.run()
    assert not summary.scalars


def test_what_it_does_not_take():
    with pytest.raises(TypeError, match=r"Expected `writers` to be .* but got 3\."):
        LogCallback(Summary(), 3)
    with pytest.raises(ValueError, match="Expected `every`"):
        LogCallback(Summary(), every=0)


def test_the_examples_of_the_documentation_train(monkeypatch):
    fitlog, board, wandb, swanlab = Fitlog(), *map(types.ModuleType, ("tensorboard", "wandb", "swanlab"))
    board.SummaryWriter = lambda folder: Summary()
    logged = {"wandb": {}, "swanlab": {}}
    run = types.SimpleNamespace(log=lambda data, step=None: logged["wandb"].update({step: data}))
    wandb.init = lambda project: run
    swanlab.init = lambda project: None
    swanlab.log = lambda data, step=None: logged["swanlab"].update({step: data})
    for name, module in {"fitlog": fitlog, "wandb": wandb, "swanlab": swanlab}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(fastNLP, "FitlogCallback", lambda log_loss_every: Callback())
    space, runs = {}, 0
    for block in blocks("docs/logging.md"):
        exec(compile(block, "logging.md", "exec"), space)
        if "callbacks" in space:
            train(Classifier(), space.pop("callbacks"), n_batches=12)
            runs += 1
    assert runs == 7
    assert "adv/adv_loss" in fitlog.losses[10] and "adv/adv_loss" in space["summary"].scalars[10]
    assert [row["step"] for row in space["rows"]] == [10]
    assert "adv_loss" in logged["swanlab"][10]
    assert {*logged["wandb"]} == {*space["summary"].scalars} == {10, 20}  # the plain loop is the last to write
    assert logged["wandb"][20]["perturbation_norm"] == pytest.approx(1)
