"""Every callback of the package, and a model that counts its passes and fails when told to.

The suites over all callbacks read these rows: a new method is found by its callback. What is below adds
other arguments than the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from support import Classifier, loader, samples, train

from fastnlp_adv.attacks import ATTA, Attack
from fastnlp_adv.callbacks import METHODS, MethodCallback
from fastnlp_adv.method import Cost, Method
from fastnlp_adv.regularizers import Regularizer


@dataclass(frozen=True)
class Row:
    """
    :param method: the name of a method.
    :param arguments: those of its callback that are not at their defaults.
    """

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def callback(self, **more: Any) -> MethodCallback:
        return METHODS[self.method].callback(**self.arguments, **more)

    def attach(self, model) -> Method:
        """Return the method on a model, with its hooks off."""
        method = self.callback().method.attach(model)
        method.close()
        return method

    @property
    def cost(self) -> Cost:
        return METHODS[self.method].cost(**self.arguments)

    @property
    def passes(self) -> dict[str, int]:
        """How many forward passes a step has, and how often a backward pass comes to the prediction of one."""
        return {"forward": self.cost.forwards, "backward": self.cost.backwards + self.cost.inner}


VARIANTS = {
    "FGM-sequence": Row("FGM", {"granularity": "sequence"}),
    "FGM-replace-part": Row("FGM", {"replace": True, "fraction": 0.25, "granularity": "sequence"}),
    "FGM-weights": Row("FGM", {"emb_name": "head", "replace": True}),
    "FGM-same-dropout": Row("FGM", {"dropout_mask": "same"}),
    "PGD-token": Row("PGD", {"granularity": "token", "steps": 2}),
    "PGD-part": Row("PGD", {"fraction": 0.5, "random_init": True}),
    "PGD-relative": Row("PGD", {"relative": True, "warmup": 3}),
    "PGD-random": Row("PGD", {"random_init": True}),
    # the embedding, and parameters that are not looked up
    "PGD-weights": Row("PGD", {"emb_name": "*e*", "random_init": True, "steps": 2}),
    "FreeLB-clean": Row("FreeLB", {"clean": True}),
    "AWP-part": Row("AWP", {"fraction": 0.5, "coordinate_bound": 0.1}),
    "SAM-adaptive": Row("SAM", {"adaptive": True}),
    "RDrop-two-pass": Row("RDrop", {"mode": "two_pass"}),
    "VAT-same-dropout": Row("VAT", {"dropout_mask": "same", "steps": 2}),
    "SMART-bregman": Row("SMART", {"bregman_weight": 1.0, "steps": 2}),
    "R3F-uniform": Row("R3F", {"noise": "uniform", "epsilon": 0.5, "dropout_mask": "same"}),
}
ROWS = {**{name: Row(name) for name in METHODS}, **VARIANTS}

#: ``@each_row`` runs a test once per row, with the row as its argument
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
#: ``@each_method`` runs it once per method, for what the arguments have no part in
each_method = pytest.mark.parametrize("row", [ROWS[name] for name in METHODS], ids=METHODS.keys())


def train_shortly(model, callbacks=None, **kwargs):
    """Train for two epochs of three batches: the first of ATTA is plain."""
    return train(model, callbacks, **{"data": samples(12), "n_batches": 6, **kwargs})


@cache
def plainly(accumulation=1):
    """Return a model that was trained as shortly without a method."""
    model = Classifier()
    train_shortly(model, accumulation_steps=accumulation)
    return model


def step_of(method, model, fields, *, indices=None, accumulation=1):
    """Run one step of any method in a plain loop, on one of so many micro-batches."""

    counted = {"accumulation_steps": accumulation}
    if isinstance(method, ATTA):
        examples = range(len(fields["labels"])) if indices is None else indices
        method.step(lambda: model.train_step(**fields)["loss"] / accumulation, indices=examples, **counted)
    elif isinstance(method, Attack):
        method.step(lambda each: model.train_step(**each)["loss"] / accumulation, fields, **counted)
    else:
        with method.running():
            loss = method(lambda each: model.train_step(**each), fields, **counted)["loss"]
        (loss / accumulation).backward()


def train_by_hand(model, method, *, accumulation=1):
    """Train for two epochs of three batches in a plain loop."""
    torch.manual_seed(1)
    method.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = loader(samples(12))
    for number, fields in enumerate(chain(data, data), start=1):
        indices = range(4 * ((number - 1) % 3), 4 * ((number - 1) % 3) + 4)
        del fields["attention_mask"]
        step_of(method, model, fields, indices=indices, accumulation=accumulation)
        if number % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
            if isinstance(method, Regularizer):
                method.after_step()


class Probe(Classifier):
    """
    A Classifier that counts its passes; ``fail`` makes a later one raise.

    A backward pass counts once for the prediction of each forward pass that it comes to; those that bring gradients to
    the parameters are told from those that end before.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.passes = {"forward": 0, "backward": 0}
        self.failure = None
        self.came_by = []  # the backward pass that came to a prediction
        self.trained_by = set()  # the backward passes that came to a parameter
        self.rnn.bias_ih_l0.register_post_accumulate_grad_hook(
            lambda p: self.trained_by.add(torch._C._current_graph_task_id())
        )

    def fail(self, where, number, error):
        """Raise ``error`` in the forward or backward pass of this number, counted from 0."""
        self.failure = (where, number, error)

    def train_step(self, input_ids, labels):
        self.count("forward")
        outputs = super().train_step(input_ids, labels)
        if outputs["pred"].requires_grad:
            outputs["pred"].register_hook(lambda grad: self.count("backward"))
        return outputs

    def count(self, where):
        if self.failure is not None and self.failure[:2] == (where, self.passes[where]):
            raise self.failure[2]("made to fail")
        self.passes[where] += 1
        if where == "backward":
            self.came_by.append(torch._C._current_graph_task_id())

    @property
    def cost(self):
        """Forward passes, backward passes to the parameters, and backward passes that end before them."""
        trained = sum(task in self.trained_by for task in self.came_by)
        return Cost(self.passes["forward"], trained, len(self.came_by) - trained)
