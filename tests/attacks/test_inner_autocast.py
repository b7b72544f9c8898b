"""Lower precision in the passes that do not train: which passes run in it, what becomes of directions, what is left."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from support import Classifier, collate, samples, since_torch

from fastnlp_adv import AWP, FGM, PGD, SAM

LOW, FULL = torch.bfloat16, torch.float32
BATCH = collate(samples(8))
#: the attack, and the precision of each of its passes
ATTACKS = {
    "pgd": (PGD, {}, [FULL, LOW, LOW, FULL]),
    "pgd-random": (PGD, {"random_init": True, "steps": 1}, [FULL, LOW, FULL]),
    "pgd-replace": (PGD, {"replace": True, "steps": 2, "granularity": "token"}, [LOW, LOW, FULL]),
    "fgm-replace": (FGM, {"replace": True}, [LOW, FULL]),
    "fgm-weights": (FGM, {"replace": True, "emb_name": "head"}, [LOW, FULL]),
    "awp-replace": (AWP, {"replace": True}, [LOW, FULL]),
    "sam": (SAM, {}, [LOW, FULL]),
}


class Watched(Classifier):
    """Notes the precision of each forward pass."""

    def __init__(self):
        super().__init__(dropout=0.0, hidden=32)
        self.precisions = []

    def train_step(self, input_ids, labels):
        outputs = super().train_step(input_ids, labels)
        self.precisions.append(outputs["pred"].dtype)
        return outputs


def loss_of(model):
    return lambda: model.train_step(BATCH["input_ids"], BATCH["labels"])["loss"]


def autocast_state():
    return torch.is_autocast_cpu_enabled(), torch.get_autocast_cpu_dtype(), torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("attack", [PGD, lambda m, **k: FGM(m, replace=True, **k)], ids=["pgd", "fgm"])
def test_closures_of_an_attack_run_in_it(attack):
    model = Watched()
    attack = attack(model, inner_autocast=LOW)
    loss_of(model)().backward()
    with attack.attack(closure=loss_of(model)):
        loss_of(model)().backward()
    inner = len(model.precisions) - 2
    assert inner and model.precisions == [FULL, *[LOW] * inner, FULL]


@pytest.mark.parametrize(("attack", "arguments", "precisions"), ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize(
    "around",
    [None, pytest.param(torch.float16, marks=since_torch(2, 2, "autocast to float16 on the CPU")), LOW],
)
def test_passes_that_do_not_train_run_in_it_and_the_others_as_without_it(attack, arguments, precisions, around):
    """In an autocast around the step, or none. What its cache holds is not used where the precision is another."""
    model = Watched()
    attack = attack(model, inner_autocast=LOW, **arguments)
    with nullcontext() if around is None else torch.autocast("cpu", around):
        before = autocast_state()
        attack.step(loss_of(model))
        assert autocast_state() == before
    assert model.precisions == [LOW if p == LOW else around or FULL for p in precisions]
    assert all(p.grad.dtype == p.dtype == FULL for p in model.parameters())
    assert attack.grad_norm.dtype == attack.perturbation_norm.dtype == FULL
    assert attack.skipped == 0


@pytest.mark.parametrize(("attack", "arguments"), [(FGM, {}), (AWP, {}), (PGD, {"steps": 1})])
def test_where_every_pass_trains_it_is_refused(attack, arguments):
    with pytest.raises(ValueError, match=r"`inner_autocast` to be None, since every pass of a step trains.*Remove it"):
        attack(Classifier(), inner_autocast=LOW, **arguments)
    attack(Classifier(), inner_autocast=LOW, replace=True, **arguments)
