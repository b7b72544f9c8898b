"""The methods beside other features of a Trainer: clipping, warmup, evaluation, optimizers, mappings."""

import pytest
import torch
from fastNLP import Accuracy, TorchGradClipCallback, TorchWarmupCallback
from support import Classifier, callback_of, distance, loader, samples, textbook_fgm, textbook_pgd, train, weights

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback


@pytest.mark.parametrize(
    "other",
    [lambda: TorchGradClipCallback(clip_value=0.05, clip_type="norm"), lambda: TorchWarmupCallback(warmup=0.5)],
    ids=["clipping", "warmup"],
)
@pytest.mark.parametrize("callback, textbook", [(FGMCallback, textbook_fgm), (PGDCallback, textbook_pgd)])
def test_callbacks_that_work_on_gradients_or_rates_see_what_they_see_in_the_textbook(callback, textbook, other):
    ours, theirs, without = Classifier(), Classifier(), Classifier()
    train(ours, [other(), callback()], accumulation_steps=2)
    train(theirs, [other()], batch_step_fn=textbook(theirs), accumulation_steps=2)
    train(without, [callback()], accumulation_steps=2)
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, without) > 1e-3


def evaluating(model, callbacks, **kwargs):
    """Train with an evaluation every second batch, and return what it gave."""
    seen, held_out = [], loader(samples(40, seed=7))
    note = callback_of(on_evaluate_end=lambda trainer, results: seen.append(dict(results)))
    arguments = {"evaluate_dataloaders": held_out, "metrics": {"acc": Accuracy()}, "evaluate_every": 2, "lr": 0.5}
    return train(model, [*callbacks, note], **arguments, **kwargs), seen


def test_evaluation_in_training_sees_the_clean_model():
    ours, theirs = Classifier(), Classifier()
    trainer, seen = evaluating(ours, [FGMCallback()], n_batches=12)
    _, expected = evaluating(theirs, [], batch_step_fn=textbook_fgm(theirs), n_batches=12)
    assert distance(ours, theirs) < 1e-5
    assert seen == expected
    assert len(seen) == 6
    assert len({result["acc#acc"] for result in seen}) > 1
    assert trainer.evaluator.run() == seen[-1]


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
