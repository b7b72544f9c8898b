"""
What a step of every method costs: operations on the vocabulary, copies, backward nodes, bytes. Counted, not timed.

Each is held against plain passes written by hand, as many as the method says that it has.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch
from fastNLP import Callback
from rows import ROWS, step_of
from support import build, loader
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastnlp_adv.attacks import Attack

#: kernels that touch some rows of a table, however large it is: lookups, and what TA-VAT does to its table
BY_ROW = {"embedding", "index", "index_copy_"}
COPIES = {"clone", "copy_", "_to_copy", "cat", "repeat", "contiguous"}


class Recorder(TorchDispatchMode):
    """The operations that run: their names, whether a dimension is as large as the vocabulary, the bytes they make."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.operations = []
        self.accumulated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        taken, given = (
            [t for t in torch.utils._pytree.tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]
            for tree in ((args, kwargs), out)
        )
        known = {t.untyped_storage()._cdata for t in taken}
        made = sum(t.numel() * t.element_size() for t in given if t.untyped_storage()._cdata not in known)
        large = any(size >= self.rows for t in taken + given for size in t.shape)
        name = func._schema.name.split("::")[1]
        if name != "detach":  # a name for what is there
            self.operations.append((name, large, made, sum(t.numel() * t.element_size() for t in given)))
        return out

    def accumulate(self, param):
        self.accumulated += 1

    def count(self, name):
        return sum(name == each for each, *_ in self.operations)

    def on_the_vocabulary(self):
        """Kernels over all rows of a table; one that gives a view computes nothing."""
        views = {"t", "view", "transpose", "expand"}
        return sum(large and name not in BY_ROW | views for name, large, _, _ in self.operations)

    def allocated(self):
        return sum(made for _, _, made, _ in self.operations)

    def copied(self):
        """The copies, and what the largest comes to."""
        sizes = [size for name, _, _, size in self.operations if name in COPIES]
        return len(sizes), max(sizes, default=0)


HIDDEN, LENGTH = 16, 7
FEW, MANY = 1009, 10007  # rows of the embedding, more than any other dimension
#: these move, or average, whole weights, and cost what the weights come to
WHOLE_WEIGHTS = ("AWP", "AWP-part", "SAM", "SAM-adaptive", "SMART-bregman")
on_lookups = pytest.mark.parametrize("name", [name for name in ROWS if name not in WHOLE_WEIGHTS])


class Model(nn.Module):
    """An embedding and two linear layers."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.word_embeddings = nn.Embedding(rows, HIDDEN, padding_idx=0)
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(HIDDEN, 3)

    def train_step(self, input_ids, labels):
        return self.after(self.word_embeddings(input_ids), labels)

    def after(self, embedded, labels):
        pred = self.head(self.dropout(torch.tanh(self.layer(embedded))).mean(1))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


def batch(examples, rows):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1, rows, (examples, LENGTH), generator=g)
    ids[0, -2:] = 0
    return {"input_ids": ids, "labels": torch.arange(examples) % 3}


def passes_of(cost, model, fields, *, together):
    """The same passes by hand: those that train, one after the other or in one backward pass, and the inner ones."""
    for _ in range(cost.inner):
        embedded = model.word_embeddings(fields["input_ids"])
        torch.autograd.grad(model.after(embedded, fields["labels"])["loss"], embedded)
    losses = [model.train_step(**fields)["loss"] for _ in range(1 if not together else cost.backwards)]
    for _ in range(cost.backwards - len(losses)):
        losses.pop().backward()
        losses.append(model.train_step(**fields)["loss"])
    sum(losses[1:], losses[0]).backward()


@cache
def recorded(name, rows=FEW, examples=4, by_hand=False):
    """A step, not the first, so that what is made once is there."""
    model, fields, row = Model(rows), batch(examples, rows), ROWS[name]
    method = row.attach(model)
    for _ in range(2):
        model.zero_grad()
        recorder = Recorder(rows)
        handles = [p.register_post_accumulate_grad_hook(recorder.accumulate) for p in model.parameters()]
        with recorder:
            if by_hand:
                passes_of(row.cost, model, fields, together=not isinstance(method, Attack))
            else:
                step_of(method, model, fields)
        for handle in handles:
            handle.remove()
    return recorder


@on_lookups
def test_nothing_is_computed_over_the_vocabulary(name):
    """But the gradient of the embedding, once per pass that trains it."""
    expected = recorded(name, by_hand=True).on_the_vocabulary()
    assert expected
    assert recorded(name).on_the_vocabulary() == expected


@on_lookups
def test_copies_are_few_and_small(name):
    """None of a weight or of activations: the largest has the size of the perturbation, most have that of the ids."""
    row = ROWS[name]
    assert recorded(name, MANY).copied() == recorded(name).copied()
    for examples in (4, 8):
        number, size = recorded(name, examples=examples).copied()
        stored = 2 * examples if row.method == "ATTA" else 0  # to and from where ATTA keeps those of each example
        assert number - stored <= 2 + 4 * sum(row.cost)
        assert size <= examples * LENGTH * HIDDEN * 4


@pytest.mark.parametrize("name", ROWS)
def test_backward_passes_are_those_that_the_method_says(name):
    """An inner pass computes the gradient of no weight but those that it is about, and accumulates none."""
    row, found, layers = ROWS[name], recorded(name), 2
    with_embedding = row.cost.backwards + (row.cost.inner if row.method == "SAM" else 0)
    assert found.count("addmm") == layers * row.cost.forwards
    assert found.count("embedding_dense_backward") == with_embedding
    assert found.accumulated == recorded(name, by_hand=True).accumulated
    inner = found.count("mm") - 2 * layers * row.cost.backwards
    if row.method == "GradientPenalty":
        assert inner >= layers * row.cost.inner  # and its derivative
    elif row.arguments.get("emb_name") or row.method in ("AWP", "SAM"):
        assert inner <= 2 * layers * row.cost.inner  # these weights are what is perturbed
    else:
        assert inner == layers * row.cost.inner


@on_lookups
def test_bytes_do_not_depend_on_the_vocabulary(name):
    """Beyond those of the passes, a small multiple of what the lookups gave."""
    extra = [recorded(name, n).allocated() - recorded(name, n, by_hand=True).allocated() for n in (FEW, MANY)]
    assert extra[0] == extra[1]
    assert extra[0] <= 12 * sum(ROWS[name].cost) * 4 * LENGTH * HIDDEN * 4


class Batches(Callback):
    """Records each batch of a Trainer."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen, self.hooks = model, [], []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.recorder = Recorder(FEW).__enter__()

    def on_before_backward(self, trainer, outputs):
        parts = [*self.model.modules(), *self.model.parameters()]
        self.hooks.append(sum(len(getattr(p, "_forward_hooks", None) or p._backward_hooks or ()) for p in parts))

    def on_train_batch_end(self, trainer):
        self.recorder.__exit__(None, None, None)
        self.seen.append(Counter(name for name, *_ in self.recorder.operations))


@cache
def trained(row=None, **when):
    callbacks = [] if row is None else [ROWS[row].callback(**when)]
    fields = batch(12, FEW)
    data = [{key: value[i] for key, value in fields.items()} for i in range(12)]
    batches = Batches(model := Model(FEW))
    torch.manual_seed(0)
    build(model, [*callbacks, batches], train_dataloader=loader(data), n_batches=3, n_epochs=1).run()
    return batches


@pytest.mark.parametrize("name", ROWS)
def test_a_batch_that_is_not_due_is_plain(name):
    plain, late, other, row = trained(), trained(name, start=10**9), trained(name, every=2), ROWS[name]
    if row.arguments.get("bregman_weight"):  # the average follows the weights in every step
        for seen in (*late.seen, other.seen[1]):
            del seen["lerp_"]
    assert late.seen == plain.seen
    assert late.hooks == plain.hooks
    assert [other.seen[1], other.hooks[1]] == [plain.seen[1], plain.hooks[1]]
    assert other.seen[0] != plain.seen[0] or row.method == "ATTA"
