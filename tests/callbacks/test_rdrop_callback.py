"""R-Drop in a Trainer, by callback and by mixin, against loops from the definition; alone and under attack."""

from types import SimpleNamespace

import pytest
import torch.nn.functional as F
from fastNLP.core.controllers.loops import TrainBatchLoop
from support import Bert, Classifier, distance, textbook_fgm, train

from fastnlp_adv import FGMCallback, RDropCallback, RDropMixin

TUTORIAL = {"kl_weight": 0.1, "reduction": "sum", "mode": "two_pass"}


def symmetric_kl(first, second):
    """Summed over batch and classes, half of both directions, from probabilities."""
    p, q = first.softmax(-1), second.softmax(-1)
    return ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2


def two_forwards(trainer, batch):
    first, second = trainer.train_step(batch)["pred"], trainer.train_step(batch)["pred"]
    labels = batch["labels"]
    return (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2 + 0.1 * symmetric_kl(first, second)


def by_hand(model, attacked):
    step = textbook_fgm(model) if attacked else TrainBatchLoop.batch_step_fn

    def batch_step_fn(trainer, batch):
        parts = {name: getattr(trainer, name) for name in ("backward", "step", "zero_grad")}
        step(SimpleNamespace(train_step=lambda batch: {"loss": two_forwards(trainer, batch)}, **parts), batch)

    return batch_step_fn


def mixed(model_class):
    return type("Mixed", (RDropMixin, model_class), {"rdrop_kl_weight": 0.1, "rdrop_reduction": "sum"})


@pytest.mark.parametrize("model_class", [Classifier, Bert])
@pytest.mark.parametrize("mixin", [False, True], ids=["callback", "mixin"])
@pytest.mark.parametrize("attacked", [False, True], ids=["alone", "under fgm"])
def test_it_equals_the_tutorial(model_class, mixin, attacked):
    ours, theirs = (mixed(model_class) if mixin else model_class)(), model_class()
    callbacks = [FGMCallback()] if attacked else []
    train(ours, callbacks if mixin else [*callbacks, RDropCallback(**TUTORIAL)])
    train(theirs, batch_step_fn=by_hand(theirs, attacked))
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, model_class()) > 1e-3


def test_kl_of_the_state_is_that_of_the_clean_pass():
    model, seen = Classifier(), []
    model.head.register_forward_hook(lambda module, args, pred: seen.append(pred.detach()))
    trainer = train(model, [RDropCallback(mode="two_pass"), FGMCallback()])
    first, second = seen[-4:-2]
    assert trainer.state["adv"]["kl"].item() == pytest.approx(symmetric_kl(first, second).item() / 4, rel=1e-4)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("model_class", [Classifier, mixed(Classifier)], ids=["plain", "mixin"])
def test_model_without_dropout_gets_one_warning(model_class, said, recwarn):
    train(model_class(dropout=0.0), [RDropCallback()])
    train(model_class(), [RDropCallback()])
    messages = [*said.messages] + [str(w.message) for w in recwarn]
    assert len([message for message in messages if "no dropout" in message]) == 1
