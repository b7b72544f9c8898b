"""FGM and PGD in a Trainer train the same weights as textbook loops that write the embedding weights."""

import pytest
import torch
from references import add, on_weights
from support import Bert, Classifier, distance, loader, textbook_fgm, textbook_pgd, train, weights
from torch.optim import SGD, AdamW

from fastnlp_adv import FGM, FGMCallback, PGDCallback

each_model = pytest.mark.parametrize("model_class", [Classifier, Bert])


@each_model
@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.05), lambda p: AdamW(p, lr=1e-3)], ids=["SGD", "AdamW"])
@pytest.mark.parametrize(
    "callback, textbook, arguments, bound",
    [
        (FGMCallback, textbook_fgm, {}, 1e-5),
        (PGDCallback, textbook_pgd, {}, 1e-4),
        (PGDCallback, textbook_pgd, {"epsilon": 0.5, "steps": 2}, 1e-4),  # from which `alpha` follows
    ],
)
def test_it_equals_the_textbook(callback, textbook, arguments, bound, model_class, optimizer):
    ours, theirs = model_class(), model_class()
    train(ours, [callback(**arguments)], optimizers=optimizer(ours.parameters()))
    train(theirs, optimizers=optimizer(theirs.parameters()), batch_step_fn=textbook(theirs, **arguments))
    assert distance(ours, theirs) < bound
    assert distance(ours, model_class()) > 1e-3


@each_model
def test_tutorial_shaped_step_runs_unchanged_and_equals_the_callback(model_class):
    ours, theirs = model_class(), model_class()
    fgm = FGM(theirs)

    def batch_step_fn(trainer, batch):
        trainer.backward(trainer.train_step(batch))
        fgm.attack(1.0, "word_embeddings")
        trainer.backward(trainer.train_step(batch))
        fgm.restore("word_embeddings")
        trainer.step()
        trainer.zero_grad()

    train(theirs, batch_step_fn=batch_step_fn)
    train(ours, [FGMCallback()])
    assert torch.equal(weights(ours), weights(theirs))


def accumulated(model, name, micro, **reference):
    """Training from the definition: each micro-batch is moved along its own gradient, and the gradients add up."""
    names = [each for each, _ in model.named_parameters() if name in each]
    total = {}
    for number, batch in enumerate([*loader(), *loader()], 1):
        inputs = batch["input_ids"], batch["labels"]
        grads = on_weights(model, lambda model, inputs=inputs: model.train_step(*inputs)["loss"], names, **reference)
        total = add(total or dict.fromkeys(grads), grads, 1 / micro)
        if number % micro == 0:
            with torch.no_grad():
                for each, param in model.named_parameters():
                    param -= 0.05 * total[each]
            total = {}


@pytest.mark.parametrize("name", ["word_embeddings", "head"])
@pytest.mark.parametrize(
    "callback, reference", [(FGMCallback, {"steps": [1.0]}), (PGDCallback, {"steps": [0.5] * 3, "radius": 1.0})]
)
def test_with_accumulation_each_micro_batch_is_attacked_along_its_own_gradient(callback, reference, name):
    ours, theirs = Classifier(dropout=0.0), Classifier(dropout=0.0)
    trainer = train(ours, [callback(emb_name=name)], accumulation_steps=4, n_batches=-1, n_epochs=2)
    accumulated(theirs, name, 4, **reference)
    assert trainer.global_forward_batches == 12
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, Classifier()) > 1e-3


@pytest.mark.parametrize("replace", [False, True])
def test_adversarial_loss_is_weighted_and_can_replace_the_clean_one(replace):
    ours, theirs = Classifier(dropout=0.0), Classifier(dropout=0.0)
    train(ours, [FGMCallback(adv_weight=0.3, replace=replace)], n_batches=-1, n_epochs=2)
    accumulated(theirs, "word_embeddings", 1, steps=[1.0], adv_weight=0.3, replace=replace)
    assert distance(ours, theirs) < 1e-5
