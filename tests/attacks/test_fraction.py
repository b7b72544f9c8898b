"""Attacks on a part of the batch, against loops over the definition on embedded inputs, in double precision."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from numbered import HIDDEN, KL_WEIGHT, LENGTH, VOCAB, Model, loss_and_pred
from references import Siamese, ascend_inputs, assert_same, differ, direction, each_granularity, gradients
from support import assert_untouched, snapshot
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import FGM, PGD, RDrop, RDropMixin
from fastnlp_adv.random_state import Noise

EXAMPLES = 6
G = torch.Generator().manual_seed(3)
IDS = torch.randint(1, VOCAB, (EXAMPLES, LENGTH), generator=G)
IDS[0, 3:] = IDS[2, 4:] = IDS[3, 2:] = 0
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


class Mixed(RDropMixin, Model):
    rdrop_kl_weight = KL_WEIGHT


def fields():
    """Tensors, a list of texts, and what belongs to no example."""
    texts = [f"text {i}" for i in range(EXAMPLES)]
    return {"ids": IDS, "labels": LABELS, "texts": texts, "scale": 0.5, "nothing": None}


def closure_of(model, mode=None):
    """The loss of a batch of any number of examples, which has to hold the same ones in all fields."""

    def step(batch):
        rows = [int(text.split()[1]) for text in batch["texts"]]
        assert torch.equal(batch["ids"], IDS[rows])
        assert batch["scale"] == 0.5
        assert batch["nothing"] is None
        return model.train_step(batch.pop("ids"), batch.pop("labels"))

    rdrop = RDrop(kl_weight=KL_WEIGHT, mode=mode) if mode in ("concat", "two_pass") else None
    return lambda batch: (step(batch) if rdrop is None else rdrop(step, batch))["loss"]


def by_definition(model, rows, steps, *, mode=None, granularity="vocab", norm="l2", replace=False, adv_weight=1.0):
    """The gradients of a step on the examples ``rows``: ascent steps of these lengths, within a ball."""
    rows = rows.tolist()
    lengths, radius = steps

    def part(d):
        return loss_and_pred(model, mode, model.words(IDS[rows]) + d, LABELS[rows])[0]

    def whole(d):
        embedded = list(model.words(IDS))
        for j, i in enumerate(rows):
            embedded[i] = embedded[i] + d[j]
        return loss_and_pred(model, mode, torch.stack(embedded), LABELS)[0]

    d = torch.zeros(len(rows), LENGTH, HIDDEN).double().requires_grad_()
    if replace:
        (grad,) = torch.autograd.grad(part(d), d)
    else:
        whole(d).backward()
        grad = d.grad
    for left, length in zip(reversed(range(len(lengths))), lengths, strict=True):
        d = ascend_inputs(d, grad, IDS[rows], granularity, 0, length, radius, norm).requires_grad_()
        if left:
            (grad,) = torch.autograd.grad(part(d), d)
    (adv_weight * (whole if replace else part)(d.detach())).backward()
    return gradients(model)


ATTACKS = {
    "FGM": (lambda m, **k: FGM(m, 0.7, **k), ([0.7], 10.0)),
    "PGD": (lambda m, **k: PGD(m, 0.5, alpha=0.3, steps=3, **k), ([0.3] * 3, 0.5)),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS)
both_losses = pytest.mark.parametrize("replace", [False, True])


def chosen(attack, model, **arguments):
    """Which examples an attack is going to draw, that is built after the same seed."""
    torch.manual_seed(5)
    return attack(copy.deepcopy(model), **arguments).choose(EXAMPLES)


def ours(attack, model, *, mode=None, **arguments):
    torch.manual_seed(5)
    with attack(model, **arguments) as attack:
        attack.step(closure_of(model, mode), fields())
    return gradients(model)


@each_attack
@each_granularity
@pytest.mark.parametrize(
    ("mode", "replace", "norm"),
    [
        (None, False, "l2"),
        (None, True, "linf"),
        ("concat", True, "l2"),
        ("two_pass", False, "l2"),
        ("mixin", True, "l2"),
    ],
)
def test_gradients_are_those_of_the_definition(attack, granularity, replace, norm, mode):
    build, steps = ATTACKS[attack]
    cls = Mixed if mode == "mixin" else Model
    options = {"mode": mode, "granularity": granularity, "norm": norm, "replace": replace, "adv_weight": 0.6}
    rows, model = chosen(build, cls(), fraction=0.5), cls()
    assert len(rows) == 3
    found = ours(build, model, fraction=0.5, **options)
    assert_same(found, by_definition(cls(), rows, steps, **options), rtol=1e-8)
    others = torch.tensor([i for i in range(EXAMPLES) if i not in rows.tolist()])
    assert differ(found, by_definition(cls(), others, steps, **options)) > 1e-3
    part, whole = (6, 12) if mode == "concat" else (3, 6)
    sizes = [part] * len(steps[0]) + [whole] if replace else [whole] + [part] * len(steps[0])
    assert model.sizes[:: 2 if mode in ("two_pass", "mixin") else 1] == sizes


@both_losses
@each_granularity
def test_all_examples_are_the_whole_batch_to_the_bit(granularity, replace):
    """Also where the fraction of so few examples is all of them."""
    found = []
    for fraction, given in ((1, ()), (1, (fields(),)), (0.99, (fields(),))):
        model = Model()
        fgm, closure = FGM(model, 0.7, granularity=granularity, replace=replace, fraction=fraction), closure_of(model)
        fgm.step(lambda *batch, closure=closure: closure(*batch or (fields(),)), *given)
        found.append(gradients(model))
    for other in found[1:]:
        assert all(torch.equal(other[name], g) for name, g in found[0].items())


@pytest.mark.parametrize(
    "fraction, examples, number", [(0.25, 16, 4), (0.25, 1, 1), (0.25, 2, 1), (1e-9, 5, 1), (0.5, 5, 2), (0.99, 3, 3)]
)
def test_so_many_examples_are_drawn_each_once_and_in_order(fraction, examples, number):
    rows = FGM(Model(), fraction=fraction).choose(examples).tolist()
    assert len(rows) == number
    assert rows == sorted(set(rows))
    assert set(rows) <= set(range(examples))


def test_every_example_is_drawn_as_often():
    torch.manual_seed(0)
    fgm = FGM(Model(), fraction=0.25)
    counts = torch.bincount(torch.cat([fgm.choose(8) for _ in range(2000)]), minlength=8)
    assert counts.min() > 430
    assert counts.max() < 570


def test_the_choice_has_a_stream_of_its_own():
    """Dropout and shuffling go on as without it, and so does the noise of a random start, whose stream is another."""
    torch.manual_seed(5)
    pgd, state = PGD(Model(), fraction=0.5, random_init=True), torch.get_rng_state()
    pgd.step(closure_of(pgd.model), fields())
    assert torch.equal(torch.get_rng_state(), state)
    noise, other = Noise(), Noise(1)
    first, second = (torch.rand(64, generator=n.on(torch.device("cpu"))) for n in (noise, other))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.4


# Lookups of all kinds.


@both_losses
@each_granularity
def test_a_frozen_embedding(granularity, replace):
    build, steps = ATTACKS["PGD"]
    model = Model()
    model.words.weight.requires_grad_(False)
    options = {"granularity": granularity, "replace": replace, "mode": "concat"}
    expected = by_definition(copy.deepcopy(model), chosen(build, model, fraction=0.5), steps, **options)
    assert_same(ours(build, model, fraction=0.5, **options), expected, rtol=1e-8)


def test_several_lookups_each_with_a_row_per_example():
    """The perturbation of each is that of the same examples."""
    sides, model, reference = (IDS, IDS.flip(1)), Siamese(padding_idx=0), Siamese(padding_idx=0)
    rows = chosen(FGM, model, fraction=0.5)
    torch.manual_seed(5)
    fgm = FGM(model, 0.7, granularity="sequence", fraction=0.5)
    fgm.step(lambda b: model(b["left"], b["right"]), dict(zip(("left", "right"), sides, strict=True)))

    d = [torch.zeros(EXAMPLES, LENGTH, 6).double().requires_grad_() for _ in sides]
    reference.at(*sides)(d).backward()
    moved = []
    for each, ids in zip(d, sides, strict=True):
        g = (each.grad * (ids != 0).unsqueeze(-1))[rows]
        moved.append(torch.stack([0.7 * direction(one, "l2") for one in g]))
    reference.at(*(ids[rows] for ids in sides))(moved).backward()
    assert_same(gradients(model), gradients(reference), rtol=1e-8)


# What cannot work.


@contextmanager
def refused(model, message, error=ValueError):
    """And the model is left untouched."""
    before = snapshot(model)
    with pytest.raises(error, match=message):
        yield
    assert_untouched(model, before)


class Positions(Model):
    """Looks up as many rows as there are positions."""

    def __init__(self, shape):
        super().__init__()
        self.positions, self.shape = nn.Embedding(LENGTH, HIDDEN).double(), shape

    def train_step(self, ids, labels):
        where = torch.arange(LENGTH)
        embedded = self.words(ids) + self.positions(where if self.shape == "T" else where.unsqueeze(0))
        return {"loss": cross_entropy(self.after(embedded), labels)}


@pytest.mark.parametrize("shape, examples", [("T", 6), ("1T", LENGTH), ("1T", 2)])
@both_losses
@each_granularity
def test_lookups_without_a_row_per_example_are_refused_by_name(granularity, replace, shape, examples):
    """Also where there happen to be as many examples as positions: then a pass on the part tells."""
    model = Positions(shape)
    fgm = FGM(model, emb_name="positions", granularity=granularity, replace=replace, fraction=0.25)
    step = (lambda b: model.train_step(**b)["loss"], {"ids": IDS[:examples], "labels": LABELS[:examples]})
    with refused(model, "embedding `positions.weight` .* row for each of .* Use `fraction=1`", RuntimeError):
        fgm.step(*step)
    fgm.fraction = 1
    fgm.step(*step)


class Sorting(Model):
    """Looks examples up in another order than that of the batch."""

    def train_step(self, ids, labels):
        order = (ids != 0).sum(1).argsort(stable=True)
        return super().train_step(ids[order], labels[order])


@both_losses
@each_granularity
@pytest.mark.parametrize(("build", "warnings"), [(Sorting, 1), (Model, 0)])
def test_a_model_that_sorts_the_batch_is_warned_of_once(granularity, replace, build, warnings, recwarn):
    model = build()
    fgm = FGM(model, granularity=granularity, replace=replace, fraction=0.5)
    for _ in range(3):
        fgm.step(closure_of(model, "concat"), fields())
    found = [str(each.message) for each in recwarn if "in the order of the batch" in str(each.message)]
    assert len(found) == warnings
    assert all("`words.weight`" in each for each in found)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"emb_name": "head"}, "`fraction` to be 1 for parameters that are not looked up.*`head.weight`"),
        ({"dropout_mask": "same"}, "`dropout_mask` to be 'new' with a `fraction` below 1, but got 'same'"),
    ],
    ids=["head", "one dropout mask"],
)
def test_what_excludes_a_part_is_refused_early_and_later(arguments, message):
    model = Model()
    with refused(model, message):
        FGM(model, fraction=0.5, **arguments)
    fgm = FGM(model, **arguments)
    with pytest.raises(ValueError, match=message):
        fgm.fraction = 0.5
    assert fgm.fraction == 1


@pytest.mark.parametrize("build", [FGM, PGD])
def test_attack_and_a_step_without_the_batch_are_refused(build):
    attack = build(Model(), fraction=0.5)
    with refused(attack.model, r"`fraction` to be 1 for `attack`.* Use `step\(closure, batch\)`"):
        attack.attack(closure=lambda: 0.0)
    with refused(attack.model, r"Expected the batch.* Use `step\(closure, batch\)`"):
        attack.step(lambda: closure_of(attack.model)(fields()))


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"ids": IDS, "labels": LABELS, "extra": torch.zeros(4, 2)}, r"shape \(4, 2\) for `batch\['extra'\]`"),
        ({"ids": IDS, "labels": LABELS, "extra": {1, 2}}, r"set for `batch\['extra'\]`"),
        ("ids", "the batch to hold tensors or lists"),
    ],
)
def test_a_batch_that_has_no_part_is_refused_with_the_way_out(batch, message):
    fgm = FGM(model := Model(), fraction=0.5)
    with refused(model, f"{message}.*Use `fraction=1`, which attacks the whole batch"):
        fgm.step(lambda b: model.train_step(b["ids"], b["labels"])["loss"], batch)
