"""
One example, one perturbation: every attack with every regularizer, against loops on embedded inputs.

In the reference the perturbation is one tensor per example, added to the embedded input of whatever forward comes. The
model drops by masks that depend on the number of the forward alone, so that its forwards differ as under dropout and
can be repeated.
"""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from numbered import HIDDEN, KL_WEIGHT, LENGTH, VOCAB, Model, both, kl, loss_and_pred
from references import assert_same, gradients

from fastnlp_adv import ATTA, FGM, FGSM, PGD, R3F, SMART, TAVAT, VAT, FreeLB, GradientPenalty, RDrop

G = torch.Generator().manual_seed(3)
IDS = torch.randint(1, VOCAB, (3, LENGTH), generator=G)
IDS[0, 3:] = IDS[1, 4:] = 0
LABELS = torch.tensor([0, 2, 1])
REAL = (IDS != 0).unsqueeze(-1)
SEED = 7


# Ours.


def seeded(method):
    method.stream.generator = torch.Generator().manual_seed(SEED)
    if isinstance(method, (FGM, PGD)):
        method.choice.generator = torch.Generator().manual_seed(SEED)
    return method


def chosen():
    """What an attack on 0.6 of the examples draws in its steps."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        yield torch.randperm(len(IDS), generator=generator)[:2].sort().values


REGULARIZERS = {
    "none": None,
    "R3F": lambda m: seeded(R3F(m, epsilon=0.3)),
    "VAT": lambda m: seeded(VAT(m, epsilon=0.7, xi=0.1)),
    "SMART": lambda m: seeded(SMART(m, epsilon=0.2, alpha=0.3, noise=0.1, bregman_weight=0.5)),
    "penalty": lambda m: GradientPenalty(m, weight=0.3),
}
MODES = [None, "concat", "two_pass"]
ATTACKS = {
    **{f"FGM-{g}": lambda m, g=g: FGM(m, 0.8, granularity=g) for g in ("vocab", "sequence", "token")},
    "FGM-replace": lambda m: FGM(m, 0.8, granularity="sequence", replace=True),
    **{f"FGSM-{g}": lambda m, g=g: FGSM(m, 0.1, granularity=g) for g in ("vocab", "sequence")},
    **{
        f"PGD-{g}": lambda m, g=g: PGD(m, 0.6, alpha=0.4, steps=2, granularity=g)
        for g in ("vocab", "sequence", "token")
    },
    "FGM-vocab-part": lambda m: seeded(FGM(m, 0.8, fraction=0.6)),
    "FGM-replace-part": lambda m: seeded(FGM(m, 0.8, granularity="sequence", replace=True, fraction=0.6)),
    "PGD-token-part": lambda m: seeded(PGD(m, 0.6, alpha=0.4, steps=2, granularity="token", fraction=0.6)),
    "FreeLB": lambda m: seeded(FreeLB(m, epsilon=0.6, alpha=0.4, steps=3, init=0.5)),
    "TAVAT": lambda m: seeded(TAVAT(m, epsilon=0.9, alpha=0.4, steps=2, init=0.5)),
    "ATTA": lambda m: ATTA(m, epsilon=0.6, alpha=0.5, storage_dtype=torch.float64),
}


def ours(attack, regularizer, mode):
    model = Model()
    regularizer = regularizer and regularizer(model)
    attack = attack(model)

    def step(fields):
        return model.train_step(**fields)

    def loss_of(fields):
        objective = step if mode is None else partial(RDrop(kl_weight=KL_WEIGHT, mode=mode), step)
        return (objective(fields) if regularizer is None else regularizer(objective, fields, step))["loss"]

    batch = {"ids": IDS, "labels": LABELS}
    for _ in range(2):
        if isinstance(attack, ATTA):
            attack.step(lambda: loss_of(batch), indices=[5, 0, 2])
        else:
            attack.step(loss_of, batch)
    return model


# The definition.


def unit(x, dims):
    size = x.pow(2).sum(dims, keepdim=True).sqrt()
    return torch.where(size > 0, x / size, 0.0)


class Reference:
    """The objective, as a function of the embedded input."""

    def __init__(self, model, regularizer, mode):
        self.model, self.regularizer, self.mode = model, regularizer, mode
        self.noise = torch.Generator().manual_seed(SEED)
        self.average = copy.deepcopy(model.state_dict())
        self.rows = slice(None)  # the examples that a pass runs on

    def clean(self, e):
        return loss_and_pred(self.model, self.mode, e, LABELS[self.rows])

    def __call__(self, e):
        return getattr(self, self.regularizer)(e)

    def none(self, e):
        return self.clean(e)[0]

    def R3F(self, e):  # noqa: N802
        loss, pred = self.clean(e)
        return loss + both(pred, self.model.after(e + 0.3 * self.normal()))

    def VAT(self, e):  # noqa: N802
        loss, pred = self.clean(e)
        d = 0.1 * unit(self.normal(), (1, 2))
        d = d.requires_grad_()
        (g,) = torch.autograd.grad(kl(pred.detach(), self.model.after(e.detach() + d)), d)
        return loss + kl(pred.detach(), self.model.after(e + 0.7 * unit(g * REAL[self.rows], (1, 2))))

    def SMART(self, e):  # noqa: N802
        with torch.no_grad():
            mean = Model()
            mean.load_state_dict(self.average)
            self.model.calls, mean.calls = self.model.calls + 1, self.model.calls
            # what an attack adds stays, the words are those of the average
            old = mean.after(mean.words(IDS[self.rows]) + (e - self.model.words(IDS[self.rows])))
        loss, pred = self.clean(e)
        d = (0.1 * self.normal()).requires_grad_()
        (g,) = torch.autograd.grad(both(pred.detach(), self.model.after(e.detach() + d)), d)
        g = g * REAL[self.rows]
        peak = g.abs().amax((1, 2), keepdim=True)  # 0 for an example of which everything was dropped
        d = (d.detach() + 0.3 * torch.where(peak > 0, g / peak, 0.0)).clamp(-0.2, 0.2)
        return loss + both(pred, self.model.after(e + d)) + 0.5 * both(pred, old)

    def penalty(self, e):
        e = e + torch.zeros_like(e).requires_grad_()
        loss, _ = self.clean(e)
        (g,) = torch.autograd.grad(loss, e, create_graph=True)
        return loss + 0.3 * len(e) / 2 * (g * REAL[self.rows]).pow(2).sum()

    def normal(self):
        return torch.empty(*IDS[self.rows].shape, HIDDEN).double().normal_(generator=self.noise) * REAL[self.rows]


ALL = slice(None)


def only(rows, g):
    """A gradient, but 0 at the examples that are not attacked."""
    return torch.zeros_like(g).index_copy(0, torch.arange(len(g))[rows], g[rows])


class Attacked:
    """The attacks: each with one tensor for the perturbation of all examples."""

    def __init__(self, name, model, objective):
        self.name, _, self.granularity = name.replace("-part", "").partition("-")
        self.chosen = chosen() if name.endswith("-part") else itertools.repeat(ALL)
        self.model, self.objective = model, objective
        self.noise = torch.Generator().manual_seed(SEED)
        self.stored = torch.zeros(*IDS.shape, HIDDEN).double()
        self.table = TAVAT(Model(), init=0.5).tables["words.weight"].clone()  # how it starts is tested elsewhere

    def train(self, d, weight=1.0, rows=ALL):
        """Add to the parameters' gradients at ``d``, on some examples, and return that of the perturbation."""
        d = d.detach().requires_grad_()
        (weight * self.on(rows, d)).backward()
        return d.grad / weight

    def inner(self, d, rows=ALL):
        d = d.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.on(rows, d), d)
        return g

    def on(self, rows, d):
        self.objective.rows = rows
        return self.objective((self.model.words(IDS) + d)[rows])

    def direction(self, g):
        g = g * REAL
        if self.granularity == "vocab":
            rows = torch.zeros(VOCAB, HIDDEN).double().index_add_(0, IDS.flatten(), g.flatten(0, 1))
            return (rows.sign() if self.name == "FGSM" else rows / rows.norm())[IDS]
        if self.name == "FGSM":
            return g.sign()
        return unit(g, (2,) if self.granularity == "token" else (1, 2))

    def project(self, d, radius):
        if self.granularity == "vocab":
            rows = torch.zeros(VOCAB, HIDDEN).double().index_copy_(0, IDS.flatten(), d.flatten(0, 1))
            return d * min(1.0, radius / rows.norm())
        size = d.pow(2).sum((2,) if self.granularity == "token" else (1, 2), keepdim=True).sqrt()
        return d * (radius / size.clamp(min=radius))

    def step(self):
        getattr(self, self.name)()

    def FGM(self):  # noqa: N802
        rows, zero = next(self.chosen), torch.zeros(*IDS.shape, HIDDEN).double()
        replaces = self.granularity == "replace"
        g = self.inner(zero, rows) if replaces else only(rows, self.train(zero))
        self.train(0.8 * self.direction(g), rows=ALL if replaces else rows)

    def FGSM(self):  # noqa: N802
        g = self.train(torch.zeros(*IDS.shape, HIDDEN).double())
        self.train(0.1 * self.direction(g))

    def PGD(self):  # noqa: N802
        rows, d = next(self.chosen), torch.zeros(*IDS.shape, HIDDEN).double()
        g = only(rows, self.train(d))
        for left in (True, False):
            d = self.project(d + 0.4 * self.direction(g), 0.6)
            if left:
                g = self.inner(d, rows)
        self.train(d, rows=rows)

    def start(self):
        noise = torch.empty(*IDS.shape, HIDDEN).double().uniform_(-1, 1, generator=self.noise) * REAL
        return noise * 0.5 / (REAL.sum((1, 2), keepdim=True) * HIDDEN).sqrt()

    def FreeLB(self):  # noqa: N802
        d = self.start()
        for left in (2, 1, 0):
            g = self.train(d, 1 / 3) * REAL
            if left:
                d = d + 0.4 * unit(g, (1, 2))
                d = d * (0.6 / d.pow(2).sum((1, 2), keepdim=True).sqrt().clamp(min=0.6))

    def TAVAT(self):  # noqa: N802
        instance = self.start()
        token = self.table[IDS].double() * REAL
        token = token / token.norm()
        g = self.train(instance + token, 1 / 2) * REAL
        instance = instance + 0.4 * unit(g, (1, 2))
        token = token + 0.4 * unit(g, (2,))
        sizes = token.norm(dim=2, keepdim=True)
        token = token * sizes / sizes.amax((1, 2), keepdim=True)
        size = (instance + token).pow(2).sum((1, 2), keepdim=True).sqrt()
        shrink = 0.9 / size.clamp(min=0.9)
        instance, token = instance * shrink, token * shrink
        self.train(instance + token, 1 / 2)
        for v in IDS.unique().tolist():
            if v:
                self.table[v] = token[v == IDS].mean(0).float()

    def ATTA(self):  # noqa: N802
        g = self.train(self.stored) * REAL
        d = self.stored + 0.5 * unit(g, (1, 2))
        self.stored = d * (0.6 / d.pow(2).sum((1, 2), keepdim=True).sqrt().clamp(min=0.6))


#: each attack with each regularizer; the modes take turns
PAIRS = [(a, r, MODES[(i + j) % 3]) for i, a in enumerate(ATTACKS) for j, r in enumerate(REGULARIZERS)]


@pytest.mark.parametrize(("attack", "regularizer", "mode"), PAIRS)
def test_gradients_are_those_of_one_perturbation_per_example(attack, regularizer, mode):
    reference = Model()
    theirs = Attacked(attack, reference, Reference(reference, regularizer, mode))
    for _ in range(2):
        theirs.step()
    model = ours(ATTACKS[attack], REGULARIZERS[regularizer], mode)
    assert model.calls == reference.calls
    assert_same(gradients(model), gradients(reference), rtol=1e-6)
