"""The method on the page about adding one: its perturbation and its step are those of the definition."""

from __future__ import annotations

import re

import pytest
import torch
from pages import blocks, read
from support import Classifier, assert_untouched, collate, distance, samples, snapshot, train

from fastnlp_adv import FGMCallback, RDropCallback
from fastnlp_adv.attacks import Attack, EmbeddingAttack
from fastnlp_adv.attacks.embedding import TwoPassAttack
from fastnlp_adv.options import options
from fastnlp_adv.regularizers import Regularizer

BATCH = collate(samples(6))
EPSILON = 0.7


@pytest.fixture(scope="module")
def page():
    """The classes of the page, without its trainings."""
    space = {}
    for block in blocks("docs/adding_a_method.md"):
        if "(TwoPassAttack)" in block or "(AttackCallback)" in block:
            exec(compile(block, "adding_a_method", "exec"), space)
    return space


def build():
    """Return a model in double precision, and the outputs of its lookups, which grow with each forward."""
    model, outputs = Classifier(dropout=0.0).double(), []
    model.rnn.register_forward_pre_hook(lambda rnn, args: outputs.append(args[0].detach()))
    return model, outputs


def loss_of(model):
    return model.train_step(BATCH["input_ids"], BATCH["labels"])["loss"]


def unmasked(model, granularity):
    """FGM's perturbation at each position, by its definition."""
    ids, weight = BATCH["input_ids"], model.word_embeddings.weight
    (grad,) = torch.autograd.grad(loss_of(model), weight)
    if granularity == "vocab":
        return (EPSILON * grad / grad.norm())[ids]
    embedded = weight.detach()[ids].requires_grad_()
    hidden, _ = model.rnn(embedded)
    loss = torch.nn.functional.cross_entropy(model.head(hidden.mean(1)), BATCH["labels"])
    (grad,) = torch.autograd.grad(loss, embedded)
    grad = grad * (ids != 0).unsqueeze(-1)
    return EPSILON * grad / grad.norm(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("granularity", ["vocab", "sequence"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_step_is_that_of_the_definition(page, granularity, replace):
    model, outputs = build()
    full = unmasked(model, granularity)
    before = snapshot(model)
    outputs.clear()
    torch.manual_seed(0)  # which the mask is drawn from
    attack = page["DropAttack"](model, EPSILON, keep=0.6, granularity=granularity, replace=replace)
    attack.step(lambda: loss_of(model))
    attack.close()
    assert_untouched(model, before)
    clean, perturbed = outputs
    r = perturbed - clean
    kept, moved = r != 0, full != 0
    assert torch.allclose(r, torch.where(kept, full, 0), atol=1e-12)
    assert 0.5 < kept.sum() / moved.sum() < 0.7
    if granularity == "vocab":  # one mask per token type
        for token in BATCH["input_ids"].unique():
            rows = r[BATCH["input_ids"] == token]
            assert torch.allclose(rows, rows[:1].expand_as(rows), atol=1e-12)

    other, _ = build()
    shift = other.word_embeddings.register_forward_hook(lambda module, args, output: output + r)
    loss = loss_of(other)
    shift.remove()
    (loss if replace else loss + loss_of(other)).backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-12)


def test_the_callback_trains_as_the_plain_loop(page):
    model, looped = (Classifier(dropout=0.0).double() for _ in range(2))
    train(model, [page["DropAttackCallback"](EPSILON, keep=0.3)], data=samples(6), batch_size=6, n_batches=3, lr=0.05)
    torch.manual_seed(1)  # as `train`
    optimizer = torch.optim.SGD(looped.parameters(), lr=0.05)
    with page["DropAttack"](looped, EPSILON, keep=0.3) as attack:
        for _ in range(3):
            attack.step(lambda: loss_of(looped))
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model, looped) < 1e-12
    assert distance(model, Classifier().double()) > 1e-3


def test_keeping_all_is_fgm_beside_a_regularizer_too(page):
    ours, fgm = Classifier(), Classifier()
    train(ours, [page["DropAttackCallback"](keep=1.0, fraction=0.5), RDropCallback()])
    train(fgm, [FGMCallback(epsilon=1.0, fraction=0.5), RDropCallback()])
    assert distance(ours, fgm) < 1e-6


def test_arguments_are_checked_and_live(page):
    callback = page["DropAttackCallback"](keep=0.3)
    callback.keep = 0.2
    assert callback.method.keep == 0.2
    with pytest.raises(ValueError, match="Expected `keep` to be a number from 0 to 1"):
        callback.keep = 1.5
    with pytest.raises(TypeError, match="Did you mean `keep`"):
        page["DropAttackCallback"](keeps=0.3)


@pytest.mark.parametrize("name", ["docs/adding_a_method.md", "docs/zh-CN/adding_a_method.md"])
def test_the_table_has_the_arguments_of_the_bases(name):
    rows = re.findall(r"^\| `(Attack|EmbeddingAttack|TwoPassAttack|Regularizer)` \| (.*) \|$", read(name), flags=re.M)
    shown = {base: set(re.findall(r"`(\w+)`", cell)) for base, cell in rows}
    shown["EmbeddingAttack"] |= shown["Attack"]
    shown["TwoPassAttack"] |= shown["EmbeddingAttack"]
    for base in (Attack, EmbeddingAttack, TwoPassAttack, Regularizer):
        assert shown[base.__name__] == {*options(type("Own", (base,), {})).names()}
