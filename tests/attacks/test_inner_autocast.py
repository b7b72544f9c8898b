"""Lower precision in the passes that do not train: which passes run in it, what becomes of directions, what is left."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import pytest
import torch
from fastNLP import Callback
from support import Bert, Classifier, collate, distance, samples, since_torch, train

from fastnlp_adv import (
    AWP,
    FGM,
    FGSM,
    PGD,
    SAM,
    AWPCallback,
    FGMCallback,
    GradientPenaltyCallback,
    PGDCallback,
    RDropCallback,
    VATCallback,
)

LOW, FULL = torch.bfloat16, torch.float32
BATCH = collate(samples(8))
#: the attack, and the precision of each of its passes
ATTACKS = {
    "pgd": (PGD, {}, [FULL, LOW, LOW, FULL]),
    "pgd-random": (PGD, {"random_init": True, "steps": 1}, [FULL, LOW, FULL]),
    "pgd-replace": (PGD, {"replace": True, "steps": 2, "granularity": "token"}, [LOW, LOW, FULL]),
    "fgm-replace": (FGM, {"replace": True}, [LOW, FULL]),
    "fgm-weights": (FGM, {"replace": True, "emb_name": "head"}, [LOW, FULL]),
    "fgsm-replace": (FGSM, {"replace": True}, [LOW, FULL]),
    "awp-replace": (AWP, {"replace": True}, [LOW, FULL]),
    "sam": (SAM, {}, [LOW, FULL]),
}
EACH = pytest.mark.parametrize(("attack", "arguments", "precisions"), ATTACKS.values(), ids=ATTACKS.keys())


class Watched(Classifier):
    """Notes the precision of each forward pass, and fails in one of them if told to."""

    def __init__(self, fails=None, **kwargs):
        super().__init__(**{"dropout": 0.0, "hidden": 32, **kwargs})
        self.precisions = []
        self.fails = fails

    def train_step(self, input_ids, labels):
        if len(self.precisions) == self.fails:
            raise KeyboardInterrupt
        outputs = super().train_step(input_ids, labels)
        self.precisions.append(outputs["pred"].dtype)
        return outputs


def loss_of(model):
    fields = BATCH if isinstance(model, Bert) else {name: BATCH[name] for name in ("input_ids", "labels")}
    return lambda: model.train_step(**fields)["loss"]


def autocast_state():
    return torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype(), torch.is_autocast_cache_enabled()


@EACH
def test_passes_that_do_not_train_run_in_it_and_the_others_do_not(attack, arguments, precisions):
    model = Watched()
    attack = attack(model, inner_autocast=LOW, **arguments)
    attack.step(loss_of(model))
    assert model.precisions == precisions
    assert all(p.grad.dtype == p.dtype == FULL for p in model.parameters())
    assert attack.grad_norm.dtype == attack.perturbation_norm.dtype == FULL
    assert attack.skipped == 0


@EACH
def test_off_by_default(attack, arguments, precisions):
    model = Watched()
    attack(model, **arguments).step(loss_of(model))
    assert model.precisions == [FULL] * len(precisions)


@pytest.mark.parametrize("attack", [PGD, lambda m, **k: FGM(m, replace=True, **k)], ids=["pgd", "fgm"])
def test_closures_of_an_attack_run_in_it(attack):
    model = Watched()
    attack = attack(model, inner_autocast=LOW)
    loss_of(model)().backward()
    with attack.attack(closure=loss_of(model)):
        loss_of(model)().backward()
    inner = len(model.precisions) - 2
    assert inner and model.precisions == [FULL, *[LOW] * inner, FULL]


def ascents(attack, model):
    """The perturbation after each ascent step, as one vector."""
    found, (tap,) = [], attack.taps
    perturb = tap.perturb

    def noted(values):
        found.append(torch.cat([value.detach().flatten().double() for value in values]))
        perturb(values)

    tap.perturb = noted
    torch.manual_seed(0)
    attack.step(loss_of(model))
    attack.close()
    return found


@pytest.mark.parametrize("model", [functools.partial(Classifier, hidden=32), Bert], ids=["classifier", "bert"])
@pytest.mark.parametrize("dropout_mask", ["new", "same"])
@pytest.mark.parametrize(
    "attack",
    [
        functools.partial(PGD, steps=4),
        functools.partial(PGD, granularity="sequence", random_init=True),
        functools.partial(FGM, replace=True, granularity="token"),
        functools.partial(FGSM, replace=True),
    ],
    ids=["pgd", "pgd-sequence", "fgm-token", "fgsm"],
)
def test_directions_hardly_change(attack, dropout_mask, model):
    """With dropout, this also says that on a CPU a mask is the same in both precisions."""
    full, low = (
        ascents(attack(m, dropout_mask=dropout_mask, inner_autocast=precision), m)
        for m, precision in ((model(), None), (model(), LOW))
    )
    for expected, found in zip(full, low, strict=True):
        assert torch.cosine_similarity(expected, found, dim=0) > 0.98


CALLBACKS = {
    "pgd": lambda **k: [PGDCallback(**k)],
    "fgm": lambda **k: [FGMCallback(replace=True, **k)],
    "awp": lambda **k: [AWPCallback(replace=True, **k)],
    "pgd+rdrop": lambda **k: [PGDCallback(**k), RDropCallback()],
    "pgd+vat": lambda **k: [PGDCallback(steps=2, **k), VATCallback()],
    "pgd+penalty": lambda **k: [PGDCallback(steps=2, **k), GradientPenaltyCallback(weight=0.1)],
}


@pytest.mark.parametrize("callbacks", CALLBACKS.values(), ids=CALLBACKS.keys())
def test_a_trainer_ends_near_where_it_would_have(callbacks):
    full, low, plain = Watched(), Watched(), Watched()
    train(full, callbacks())
    trainer = train(low, callbacks(inner_autocast=LOW))
    train(plain)
    assert LOW in low.precisions
    assert LOW not in full.precisions
    assert 0 < distance(low, full) < 0.1 * distance(full, plain)
    assert torch.isfinite(trainer.state["adv"]["grad_norm"])


@EACH
@pytest.mark.parametrize(
    "around",
    [None, pytest.param(torch.float16, marks=since_torch(2, 2, "autocast to float16 on the CPU")), LOW],
)
def test_an_autocast_around_the_step_holds_for_the_other_passes(attack, arguments, precisions, around):
    """Also its cache: what it has cast is neither used where the precision is another, nor lost."""
    model = Watched()
    attack = attack(model, inner_autocast=LOW, **arguments)
    with nullcontext() if around is None else torch.autocast("cpu", around):
        before = autocast_state()
        attack.step(loss_of(model))
        assert autocast_state() == before
    assert model.precisions == [LOW if p == LOW else around or FULL for p in precisions]


@EACH
@pytest.mark.parametrize("cache", [True, False])
def test_a_step_that_fails_leaves_the_precision_as_it_was(attack, arguments, precisions, cache):
    for fails in range(len(precisions)):
        model = Watched(fails)
        attacked = attack(model, inner_autocast=LOW, **arguments)
        with torch.autocast("cpu", LOW, enabled=False, cache_enabled=cache):
            before = autocast_state()
            with pytest.raises(KeyboardInterrupt):
                attacked.step(loss_of(model))
            assert autocast_state() == before
        assert not torch.is_autocast_cpu_enabled()


class Casts(Callback):
    """Gives the Trainer an autocast of its own, as ``fp16=True`` does on a GPU."""

    def on_after_trainer_initialized(self, trainer, driver):
        driver.auto_cast = functools.partial(torch.autocast, "cpu", dtype=torch.float16)


@since_torch(2, 2, "autocast to float16 on the CPU")
def test_the_autocast_of_a_trainer_goes_first():
    model = Watched()
    train(model, [PGDCallback(inner_autocast=LOW), Casts()], n_batches=2, n_epochs=1)
    assert set(model.precisions) == {torch.float16}


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [(FGM, {}), (FGSM, {}), (AWP, {}), (PGD, {"steps": 1})],
    ids=["fgm", "fgsm", "awp", "pgd-1"],
)
def test_where_every_pass_trains_it_is_refused(attack, arguments):
    with pytest.raises(ValueError, match=r"`inner_autocast` to be None, since every pass of a step trains.*Remove it"):
        attack(Classifier(), inner_autocast=LOW, **arguments)
    attack(Classifier(), inner_autocast=LOW, replace=True, **arguments)
