"""FGM and PGD in a Trainer train the same weights as textbook loops that write the embedding weights."""

import pytest
import torch
from support import Bert, Classifier, distance, loader, textbook_fgm, textbook_pgd, train, weights
from torch.optim import SGD, AdamW

from fastnlp_adv import FGM, FGMCallback, PGDCallback

each_model = pytest.mark.parametrize("model_class", [Classifier, Bert])
each_optimizer = pytest.mark.parametrize(
    "optimizer", [lambda p: SGD(p, lr=0.05), lambda p: AdamW(p, lr=1e-3)], ids=["SGD", "AdamW"]
)


@each_model
@each_optimizer
@pytest.mark.parametrize(
    "callback, textbook, bound", [(FGMCallback, textbook_fgm, 1e-5), (PGDCallback, textbook_pgd, 1e-4)]
)
def test_it_equals_the_textbook(callback, textbook, bound, model_class, optimizer):
    ours, theirs = model_class(), model_class()
    train(ours, [callback()], optimizers=optimizer(ours.parameters()))
    train(theirs, optimizers=optimizer(theirs.parameters()), batch_step_fn=textbook(theirs))
    assert distance(ours, theirs) < bound
    assert distance(ours, model_class()) > 1e-3


@pytest.mark.parametrize("arguments", [{"alpha": 2.0, "steps": 2}, {"epsilon": 0.1, "steps": 4}])
def test_pgd_equals_the_textbook_whatever_its_arguments(arguments):
    ours, theirs = Classifier(), Classifier()
    train(ours, [PGDCallback(**arguments)])
    train(theirs, batch_step_fn=textbook_pgd(theirs, **arguments))
    assert distance(ours, theirs) < 1e-4


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


def accumulated(model, *, name, steps, micro, clean_weight=1.0, adv_weight=1.0, lr=0.05, epsilon=1.0, alpha=0.5):
    """Training from the definition: each micro-batch is moved along its own gradient, and the gradients add up."""
    attacked = [p for n, p in model.named_parameters() if name in n]
    total = [torch.zeros_like(p) for p in model.parameters()]

    def gradients(batch, params):
        loss = model.train_step(batch["input_ids"], batch["labels"])["loss"]
        return torch.autograd.grad(loss, params)

    def add(grads, weight):
        for sum_, grad in zip(total, grads, strict=True):
            sum_.add_(grad, alpha=weight / micro)

    def write(origin, moves):
        for param, start, move in zip(attacked, origin, moves, strict=True):
            param.data.copy_(start + move)

    def ascend(moves, grads):
        for move, grad in zip(moves, grads, strict=True):
            move.add_(grad / grad.norm(), alpha=alpha if steps > 1 else epsilon)
            move.mul_(min(1.0, epsilon / move.norm().item()))

    seen = 0
    for _ in range(2):
        for batch in loader():
            clean = gradients(batch, list(model.parameters()))
            add(clean, clean_weight)
            origin, moves = [p.detach().clone() for p in attacked], [torch.zeros_like(p) for p in attacked]
            direction = [g for (n, _), g in zip(model.named_parameters(), clean, strict=True) if name in n]
            for step in range(steps):
                ascend(moves, direction)
                write(origin, moves)
                if step < steps - 1:
                    direction = gradients(batch, attacked)
            add(gradients(batch, list(model.parameters())), adv_weight)
            write(origin, [torch.zeros_like(p) for p in attacked])
            seen += 1
            if seen % micro == 0:
                for param, grad in zip(model.parameters(), total, strict=True):
                    param.data.sub_(grad, alpha=lr)
                    grad.zero_()


@pytest.mark.parametrize("name", ["word_embeddings", "head"])
@pytest.mark.parametrize("callback, steps", [(FGMCallback, 1), (PGDCallback, 3)])
def test_with_accumulation_each_micro_batch_is_attacked_along_its_own_gradient(callback, steps, name):
    ours, theirs = Classifier(), Classifier()
    trainer = train(ours, [callback(emb_name=name)], accumulation_steps=4, n_batches=-1, n_epochs=2)
    torch.manual_seed(1)
    accumulated(theirs, name=name, steps=steps, micro=4)
    assert trainer.global_forward_batches == 12
    assert distance(ours, theirs) < 1e-4
    assert distance(ours, Classifier()) > 1e-3


@pytest.mark.parametrize("adv_weight, replace", [(0.3, False), (0.3, True)])
def test_adversarial_loss_is_weighted_and_can_replace_the_clean_one(adv_weight, replace):
    ours, theirs = Classifier(), Classifier()
    train(ours, [FGMCallback(adv_weight=adv_weight, replace=replace)], n_batches=-1, n_epochs=2)
    torch.manual_seed(1)
    accumulated(theirs, name="word_embeddings", steps=1, micro=1, clean_weight=1.0 - replace, adv_weight=adv_weight)
    assert distance(ours, theirs) < 1e-5
