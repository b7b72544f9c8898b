"""Lower precision in the passes that do not train: which passes run in it, what becomes of directions, what is left."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support import Bert, Classifier, collate, samples, since_torch

from fastnlp_adv import (
    AWP,
    FGM,
    FGSM,
    PGD,
    SAM,
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


@pytest.mark.parametrize("attack", [PGD, lambda m, **k: FGM(m, replace=True, **k)], ids=["pgd", "fgm"])
def test_closures_of_an_attack_run_in_it(attack):
    model = Watched()
    attack = attack(model, inner_autocast=LOW)
    loss_of(model)().backward()
    with attack.attack(closure=loss_of(model)):
        loss_of(model)().backward()
    inner = len(model.precisions) - 2
    assert inner and model.precisions == [FULL, *[LOW] * inner, FULL]


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


@pytest.mark.parametrize(
    ("attack", "arguments"),
    [(FGM, {}), (FGSM, {}), (AWP, {}), (PGD, {"steps": 1})],
    ids=["fgm", "fgsm", "awp", "pgd-1"],
)
def test_where_every_pass_trains_it_is_refused(attack, arguments):
    with pytest.raises(ValueError, match=r"`inner_autocast` to be None, since every pass of a step trains.*Remove it"):
        attack(Classifier(), inner_autocast=LOW, **arguments)
    attack(Classifier(), inner_autocast=LOW, replace=True, **arguments)
