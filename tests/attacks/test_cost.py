"""What a step costs, counted, not timed: passes, parameter gradients, vocabulary-sized tensors, waits for a device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from references import batch
from support import since_torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from fastnlp_adv import FGM, FGSM, PGD
from fastnlp_adv.taps import Embedding

ROWS, HIDDEN = 5000, 6
IDS, LABELS = batch(4, 7, vocab=ROWS)

ATTACKS = {
    "fgm": (FGM, {}, 2),
    "fgm-sequence": (FGM, {"granularity": "sequence"}, 2),
    "fgm-token": (FGM, {"granularity": "token"}, 2),
    "fgm-replace": (FGM, {"replace": True}, 2),
    "fgsm": (FGSM, {}, 2),
    "pgd-1": (PGD, {"steps": 1}, 2),
    "pgd-3": (PGD, {}, 4),
    "pgd-5-token": (PGD, {"steps": 5, "granularity": "token"}, 6),
    "pgd-random": (PGD, {"random_init": True}, 5),
    "pgd-random-sequence-linf": (PGD, {"random_init": True, "granularity": "sequence", "norm": "linf"}, 5),
    "pgd-replace": (PGD, {"replace": True}, 4),
}
EACH = pytest.mark.parametrize(("attack", "arguments", "passes"), ATTACKS.values(), ids=ATTACKS.keys())


class Model(nn.Module):
    """Counts its forward passes."""

    def __init__(self, **embedding):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(ROWS, HIDDEN, padding_idx=0, **embedding)
        self.layer = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 3)
        self.forwards = 0

    def forward(self, ids):
        self.forwards += 1
        return self.head(torch.tanh(self.layer(self.emb(ids))).mean(1))


def loss(model):
    return nn.functional.cross_entropy(model(IDS), LABELS)


class Recorder(TorchDispatchMode):
    """The operations that ran, and the shapes that they gave."""

    def __init__(self):
        super().__init__()
        self.vocabulary_sized = Counter()
        self.operations = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.operations[str(func)] += 1
        shapes = [tuple(t.shape) for t in torch.utils._pytree.tree_flatten(out)[0] if isinstance(t, torch.Tensor)]
        self.vocabulary_sized.update((str(func), shape) for shape in shapes if ROWS in shape)
        return out


def recorded(run):
    with Recorder() as recorder:
        run()
    return recorder


@pytest.mark.parametrize("frozen", [False, True])
def test_watching_a_clean_pass_costs_one_addition_and_one_copy_of_a_gradient(frozen):
    """Per lookup. The zeros are one element, expanded; what is detached is not copied."""
    plain, model = Model(), Model()
    for each in (plain, model):
        each.emb.weight.requires_grad_(not frozen)
    FGM(model)
    extra = recorded(lambda: loss(model).backward()).operations - recorded(lambda: loss(plain).backward()).operations
    found = {name.split(".")[1]: number for name, number in extra.items()}
    assert {name: number for name, number in found.items() if name not in ("detach", "expand", "t", "view")} == {
        "new_zeros": 1,
        "add": 1,
        "mm" if frozen else "clone": 1,  # where nothing is trained below, the gradient is computed for the leaf only
    }


@since_torch(2, 2, "fake tensors take part in random numbers and in broadcasts")
@EACH
@pytest.mark.parametrize("emb_name", [None, "layer"])
def test_no_operation_waits_for_a_device(attack, arguments, passes, emb_name, monkeypatch):
    """A whole step on fake tensors, which have no values: anything that needs one on the host raises."""
    if emb_name and arguments.get("granularity"):
        arguments = {k: v for k, v in arguments.items() if k != "granularity"}
    monkeypatch.setattr(Embedding, "row_length", lambda embedding: 1.0)  # is read once, at attaching
    with FakeTensorMode():
        ids, labels = torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, dtype=torch.long)
        model = Model(scale_grad_by_freq=True)
        attack = attack(model, emb_name=emb_name, **arguments)
        attack.step(lambda: nn.functional.cross_entropy(model(ids), labels))
        assert model.forwards == passes
        assert attack.skipped.shape == attack.grad_norm.shape == attack.perturbation_norm.shape == ()


@since_torch(2, 2, "fake tensors take part in random numbers and in broadcasts")
@EACH
def test_a_part_of_a_batch_waits_for_no_device(attack, arguments, passes):
    """The indices, which the CPU draws, go to the device of the batch and of the lookups."""
    with torch.device("meta"):  # which has no values either
        batch = {"ids": torch.zeros(4, 7, dtype=torch.long), "labels": torch.zeros(4, dtype=torch.long)}
        model = Model(scale_grad_by_freq=True)
    attack = attack(model, fraction=0.5, **arguments)
    attack.stream.generator = torch.Generator()  # there is none on this device
    for tap in attack.taps:
        tap._layout._attacked = None  # the first step, in which ids are compared, is over
    attack.step(lambda part: nn.functional.cross_entropy(model(part["ids"]), part["labels"]), batch)
    assert model.forwards == passes
    assert attack.skipped.device.type == "meta"


def test_fake_tensors_would_notice():
    with FakeTensorMode():
        x = torch.ones(3)
        for reads in (lambda: x.norm().item(), lambda: bool(x.sum() > 0), lambda: x[x > 0], lambda: x.unique()):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                reads()


def test_sparse_gradients_stay_sparse():
    plain, model = Model(sparse=True), Model(sparse=True)
    fgm = FGM(model)
    found = recorded(lambda: fgm.step(lambda: loss(model)))
    expected = recorded(lambda: [loss(plain).backward() for _ in range(2)])
    assert found.vocabulary_sized == expected.vocabulary_sized
