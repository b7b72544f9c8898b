"""What is refused, when, and that the message says what was found and what to do."""

from contextlib import contextmanager

import pytest
import torch
from fastNLP.core.controllers.loops import TrainBatchLoop
from fastNLP.core.drivers import Driver
from fastNLP.core.drivers.torch_driver import TorchFSDPDriver, TorchSingleDriver
from fastNLP.core.drivers.torch_driver.deepspeed import DeepSpeedDriver
from fastNLP.core.drivers.torch_driver.fairscale import FairScaleDriver
from support import Classifier, build
from torch import nn

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback, RDropMixin

each_method = pytest.mark.parametrize("method", [FGMCallback, RDropCallback])


@contextmanager
def refused(*parts, error=ValueError):
    """What happens inside is refused with a message that has all these parts: what was found, and what to do."""
    with pytest.raises(error) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


def test_model_without_an_embedding_is_refused_when_the_trainer_is_built():
    with refused("to have an nn.Embedding, but got Linear without one", "Give `emb_name`"):
        build(nn.Linear(2, 2), [FGMCallback()])


def test_max_norm_is_refused_when_the_trainer_is_built():
    with refused("`word_embeddings.weight`", "to have no `max_norm`, but got 1.0", "`max_norm=None`"):
        build(Classifier(max_norm=1.0), [FGMCallback()])


def my_step(trainer, batch):
    TrainBatchLoop.batch_step_fn(trainer, batch)


@each_method
def test_trainer_with_its_own_batch_step(method):
    with refused("fastNLP's own batch step", "but got `my_step`", "Remove `batch_step_fn`"):
        build(Classifier(), [method()], batch_step_fn=my_step)


class MyLoop(TrainBatchLoop):
    """A loop that does not call ``batch_step_fn``."""

    def run(self, trainer, dataloader):
        for batch in dataloader:
            TrainBatchLoop.batch_step_fn(trainer, batch)
            trainer.global_forward_batches += 1


@each_method
@pytest.mark.parametrize("loop, found", [(TrainBatchLoop(my_step), "my_step"), (MyLoop(), "MyLoop")])
def test_loop_that_is_replaced_later_is_refused_when_training_begins(method, loop, found):
    trainer = build(Classifier(), [method()])
    trainer.train_batch_loop = loop
    with refused("fastNLP's own batch step", f"but got `{found}`", "Remove", "`train_batch_loop`"):
        trainer.run()


@pytest.mark.parametrize(
    "pair, kind",
    [
        ((FGMCallback, PGDCallback), "attack"),
        ((FGMCallback, FGMCallback), "attack"),
        ((RDropCallback, RDropCallback), "RDropCallback"),
    ],
)
def test_two_of_a_kind(pair, kind):
    names = " and ".join(c.__name__ for c in pair)
    with refused(f"at most one {kind} in a Trainer, but got {names}. Keep one"):
        build(Classifier(), [c() for c in pair])


class OtherDriver(Driver):
    """A driver that is not torch's."""


OtherDriver.__abstractmethods__ = frozenset()  # so that there can be one, though it does nothing
NOT_TORCH = ("fastNLP's torch driver", "`driver='torch'`")
OVER_TWO = nn.DataParallel(Classifier())
OVER_TWO.device_ids = [0, 1]


@each_method
@pytest.mark.parametrize(
    "driver, values, parts",
    [
        (OtherDriver, {}, ("got OtherDriver.", *NOT_TORCH)),
        (DeepSpeedDriver, {}, ("got DeepSpeedDriver.", *NOT_TORCH)),
        (FairScaleDriver, {}, ("got FairScaleDriver.", *NOT_TORCH)),
        (TorchFSDPDriver, {"fp16": True}, ("Expected `fp16` to be False", "`mixed_precision`")),
        (TorchSingleDriver, {"model": OVER_TWO}, ("nn.DataParallel over 2 devices", "`Trainer(device=[0, 1])`")),
    ],
)
def test_drivers_that_do_not_do(method, driver, values, parts):
    trainer, made = build(Classifier()), driver.__new__(driver)
    for name, value in values.items():
        setattr(made, name, value)
    with refused(*parts):
        method().on_after_trainer_initialized(trainer, made)


class Mixed(RDropMixin, Classifier):
    """R-Drop in its ``train_step``, which is not called where the model comes wrapped."""


def test_r_drop_in_the_step_of_a_wrapped_model():
    trainer, driver = build(Classifier()), TorchSingleDriver(Mixed(), torch.device("cpu"))
    driver.outside_ddp = True
    with refused(
        "`rdrop_in` of Mixed to be 'forward'", 'Set `rdrop_in = "forward"` in Mixed, or add `RDropCallback()`'
    ):
        FGMCallback().on_after_trainer_initialized(trainer, driver)
