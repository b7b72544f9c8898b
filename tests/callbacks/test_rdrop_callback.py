"""R-Drop in a Trainer, by callback and by mixin, against loops from the definition; alone and under attack."""

import pytest
import torch.nn.functional as F
from fastNLP import logger
from support import Bert, Classifier, distance, matched, train

from fastnlp_adv import FGMCallback, RDropCallback, RDropMixin

TUTORIAL = {"kl_weight": 0.1, "reduction": "sum", "mode": "two_pass"}
each_model = pytest.mark.parametrize("model_class", [Classifier, Bert])


def symmetric_kl(first, second):
    """Summed over batch and classes, half of both directions, from probabilities."""
    p, q = first.softmax(-1), second.softmax(-1)
    return ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2


def two_forwards(trainer, batch):
    first, second = trainer.train_step(batch)["pred"], trainer.train_step(batch)["pred"]
    labels = batch["labels"]
    return (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2 + 0.1 * symmetric_kl(first, second)


def by_hand(trainer, batch):
    trainer.backward({"loss": two_forwards(trainer, batch)})
    trainer.step()
    trainer.zero_grad()


def by_hand_under_fgm(model):
    def batch_step_fn(trainer, batch):
        trainer.backward({"loss": two_forwards(trainer, batch)})
        (weight,) = matched(model, "word_embeddings")
        value = weight.detach().clone()
        weight.data += weight.grad / weight.grad.norm()
        trainer.backward({"loss": two_forwards(trainer, batch)})
        weight.data = value
        trainer.step()
        trainer.zero_grad()

    return batch_step_fn


class MixedClassifier(RDropMixin, Classifier):
    rdrop_kl_weight = 0.1
    rdrop_reduction = "sum"


class MixedBert(RDropMixin, Bert):
    rdrop_kl_weight = 0.1
    rdrop_reduction = "sum"


MIXED = {Classifier: MixedClassifier, Bert: MixedBert}


@each_model
def test_two_pass_equals_the_tutorial(model_class):
    ours, theirs = model_class(), model_class()
    train(ours, [RDropCallback(**TUTORIAL)])
    train(theirs, batch_step_fn=by_hand)
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, model_class()) > 1e-3


@each_model
def test_mixin_equals_the_tutorial(model_class):
    ours, theirs = MIXED[model_class](), model_class()
    train(ours)
    train(theirs, batch_step_fn=by_hand)
    assert distance(ours, theirs) < 1e-4


@each_model
@pytest.mark.parametrize("mixin", [False, True])
def test_fgm_with_rdrop_equals_the_combination_by_hand(model_class, mixin):
    ours, theirs = MIXED[model_class]() if mixin else model_class(), model_class()
    train(ours, [FGMCallback()] if mixin else [FGMCallback(), RDropCallback(**TUTORIAL)])
    train(theirs, batch_step_fn=by_hand_under_fgm(theirs))
    assert distance(ours, theirs) < 1e-4


def test_kl_of_the_state_is_that_of_the_clean_pass():
    model = Classifier()
    seen = []
    step = model.train_step

    def train_step(input_ids, labels):
        outputs = step(input_ids, labels)
        seen.append(outputs["pred"].detach())
        return outputs

    model.train_step = train_step
    trainer = train(model, [RDropCallback(mode="two_pass"), FGMCallback()])
    first, second = seen[-4:-2]
    assert trainer.state["adv"]["kl"].item() == pytest.approx(symmetric_kl(first, second).item() / 4, rel=1e-4)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("model_class", [Classifier, MixedClassifier])
def test_model_without_dropout_gets_one_warning(model_class, caplog, recwarn):
    logger.addHandler(caplog.handler)
    try:
        train(model_class(dropout=0.0), [RDropCallback()])
        train(model_class(), [RDropCallback()])
    finally:
        logger.removeHandler(caplog.handler)
    messages = [r.getMessage() for r in caplog.records] + [str(w.message) for w in recwarn]
    assert len([message for message in messages if "no dropout" in message]) == 1
