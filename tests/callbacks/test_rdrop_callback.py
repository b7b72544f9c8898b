"""R-Drop in a Trainer, by callback and by mixin, against loops from the definition; alone and under attack."""

import pytest
import torch.nn.functional as F
from support import Bert, Classifier, distance, matched, train

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
    def batch_step_fn(trainer, batch):
        trainer.backward({"loss": two_forwards(trainer, batch)})
        if attacked:
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


@pytest.mark.parametrize("model_class, mixed", [(Classifier, MixedClassifier), (Bert, MixedBert)])
@pytest.mark.parametrize("mixin", [False, True], ids=["callback", "mixin"])
@pytest.mark.parametrize("attacked", [False, True], ids=["alone", "under fgm"])
def test_it_equals_the_tutorial(model_class, mixed, mixin, attacked):
    ours, theirs = (mixed if mixin else model_class)(), model_class()
    callbacks = [FGMCallback()] if attacked else []
    train(ours, callbacks if mixin else [*callbacks, RDropCallback(**TUTORIAL)])
    train(theirs, batch_step_fn=by_hand(theirs, attacked))
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, model_class()) > 1e-3


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
def test_model_without_dropout_gets_one_warning(model_class, said, recwarn):
    train(model_class(dropout=0.0), [RDropCallback()])
    train(model_class(), [RDropCallback()])
    messages = [r.getMessage() for r in said.records] + [str(w.message) for w in recwarn]
    assert len([message for message in messages if "no dropout" in message]) == 1
