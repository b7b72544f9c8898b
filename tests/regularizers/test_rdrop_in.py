"""Where R-Drop acts in a model with RDropMixin: in ``train_step``, or where a loop calls the model."""

from __future__ import annotations

import os
from collections import namedtuple
from dataclasses import make_dataclass
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastnlp_adv import RDrop, RDropMixin

pytestmark = pytest.mark.filterwarnings("error:.*R-Drop")  # unless a test expects it

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1, 0])


FIELDS = ("loss", "logits", "name")
Out, Frozen = make_dataclass("Out", FIELDS), make_dataclass("Frozen", FIELDS, frozen=True)
Named = namedtuple("Named", FIELDS)
Last = namedtuple("Last", ["logits", "loss", "name"])
#: how a model returns its loss, its logits and something else, and how they are read
FORMS = {
    "dict": (lambda **e: e, lambda o: (o["loss"], o["logits"], o["name"])),
    "dataclass": (Out, lambda o: (o.loss, o.logits, o.name)),
    "frozen dataclass": (Frozen, lambda o: (o.loss, o.logits, o.name)),
    "tuple": (lambda loss, logits, name: (loss, logits, name), lambda o: o),
    "namedtuple": (Named, lambda o: o),
    "namedtuple, loss not first": (Last, lambda o: (o.loss, o.logits, o.name)),
}


class Net(RDropMixin, nn.Module):
    rdrop_kl_weight = 2.0

    def __init__(self, form="dict"):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        self.form, self.rows = form, []

    def forward(self, x, labels):
        self.rows.append(len(x))
        logits = self.inner(x)
        return FORMS[self.form][0](loss=F.cross_entropy(logits, labels), logits=logits, name="out")


class InForward(Net):
    rdrop_in = "forward"


def definition(model, kl_weight=2.0, mode="two_pass"):
    """R-Drop's loss and the first logits, written out."""
    if mode == "concat":
        both = model.inner(torch.cat([X, X]))
        pred, pred2 = both[:5], both[5:]
    else:
        pred, pred2 = model.inner(X), model.inner(X)
    p, q = pred.softmax(-1), pred2.softmax(-1)
    kl = ((p - q) * (p.log() - q.log())).sum() / 2 / 5
    return (F.cross_entropy(pred, LABELS) + F.cross_entropy(pred2, LABELS)) / 2 + kl_weight * kl, pred


def seeded(function):
    torch.manual_seed(1)
    return function()


@pytest.mark.parametrize("mode", ["two_pass", "concat"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "call", [lambda m: m(X, LABELS), lambda m: m(X, labels=LABELS), lambda m: m(labels=LABELS, x=X)]
)
def test_a_call_returns_the_models_type_with_the_combined_loss(form, mode, call):
    model = InForward(form)
    model.rdrop_mode = mode
    found = seeded(lambda: call(model))
    assert model.rows == ([5, 5] if mode == "two_pass" else [10])
    assert type(found) is type(FORMS[form][0](loss=0, logits=0, name=0))
    loss, logits, name = FORMS[form][1](found)
    torch.testing.assert_close([loss, logits], list(seeded(lambda: definition(model, mode=mode))))
    assert name == "out"
    assert form != "dict" or found["kl"] > 0


def test_what_is_no_training_call_is_plain():
    model = InForward()
    plain = {"loss", "logits", "name"}
    assert set(model.forward(X, LABELS)) == plain
    with torch.no_grad():
        assert set(model(X, LABELS)) == plain
    with model.rdrop_as(None):
        assert set(model(X, LABELS)) == plain
    assert set(model.eval()(X, LABELS)) == plain
    assert model.rows == [5] * 4


@pytest.mark.parametrize("model_class", [Net, InForward])
def test_train_step_and_r_drop_of_another_run_it_once_either_way(model_class):
    model = model_class()
    found = seeded(lambda: model.train_step(X, LABELS))
    torch.testing.assert_close(found["loss"], seeded(lambda: definition(model))[0])
    RDrop()(lambda b: model(**b), {"x": X, "labels": LABELS})
    assert model.rows == [5, 5, 10]


@pytest.mark.parametrize("form", FORMS)
def test_a_call_that_passes_train_step_by_is_warned_of_once(form):
    model = Net(form)
    with pytest.warns(UserWarning, match=r'`rdrop_in = "forward"` in Net'):
        assert torch.equal(FORMS[form][1](seeded(lambda: model(X, LABELS)))[1], seeded(lambda: model.inner(X)))
    model(X, LABELS)
    Net(form).eval()(X, LABELS)
    assert model.rows == [5, 5]


@pytest.fixture
def process_group(tmp_path):
    store = dist.FileStore(os.fspath(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=30))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("form", FORMS)
def test_distributed_data_parallel_does_the_same(process_group, form):
    model = InForward(form)
    wrapped = DistributedDataParallel(model)
    found = seeded(lambda: wrapped(X, labels=LABELS))
    loss = FORMS[form][1](found)[0]
    torch.testing.assert_close(loss, seeded(lambda: definition(model))[0])
    assert model.rows == [5, 5]
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    expected = torch.autograd.grad(seeded(lambda: definition(model))[0], list(model.parameters()))
    torch.testing.assert_close(gradients, list(expected))
    with pytest.warns(UserWarning, match="rdrop_in"):
        DistributedDataParallel(Net(form))(X, LABELS)
