"""When the methods act, what they report, and that the step is a guest in the Trainer."""

import copy
from itertools import pairwise

import pytest
import torch
from rows import Probe
from support import Classifier, build, callback_of, loader, samples, train, weights
from torch import nn

from fastnlp_adv import (
    FGM,
    ATTACallback,
    FGMCallback,
    FGSMCallback,
    LogCallback,
    PGDCallback,
    RDropCallback,
    RDropMixin,
    TAVATCallback,
    VATCallback,
)
from fastnlp_adv.schedule import Progress


@pytest.mark.parametrize(
    "schedule, accumulation, expected",
    [
        ({}, 1, [2] * 12),
        ({"start": 5}, 1, [1] * 5 + [2] * 7),
        ({"start": 0.3}, 1, [1] * 4 + [2] * 8),  # 3.6 steps: the first whole step after them is number 4
        ({"start": 2, "every": 3}, 1, [1, 1] + [2, 1, 1] * 3 + [2]),
        ({"start": 1, "every": 2}, 2, [1, 1, 2, 2] * 3),
        ({"start": 0.5}, 3, [1] * 6 + [2] * 6),
    ],
)
def test_start_and_every_count_optimizer_steps(schedule, accumulation, expected):
    """Two forwards where FGM is due, else one."""
    model, forwards = Probe(), [0]
    note = callback_of(on_train_batch_end=lambda trainer: forwards.append(model.passes["forward"]))
    train(model, [FGMCallback(**schedule), note], accumulation_steps=accumulation, n_batches=-1, n_epochs=2)
    assert [after - before for before, after in pairwise(forwards)] == expected


def one_batch(callbacks, **kwargs):
    """The state after one step on one batch without dropout, that batch, and the model as it was before."""
    model = Classifier(dropout=0.0)
    before = copy.deepcopy(model)
    trainer = train(model, callbacks, data=samples(4), n_batches=1, **kwargs)
    return trainer.state["adv"], next(iter(loader(samples(4)))), before


def clean_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


def test_state_of_fgm():
    state, batch, model = one_batch([FGMCallback(epsilon=0.7)])
    weight = model.word_embeddings.weight
    loss = clean_loss(model, batch)
    (grad,) = torch.autograd.grad(loss, weight)
    weight.data += 0.7 * grad / grad.norm()
    assert set(state) == {"loss", "adv_loss", "grad_norm", "perturbation_norm", "skipped"}
    assert state["loss"].item() == pytest.approx(loss.item())
    assert state["adv_loss"].item() == pytest.approx(clean_loss(model, batch).item())
    assert state["grad_norm"].item() == pytest.approx(grad.norm().item(), rel=1e-5)
    assert state["perturbation_norm"].item() == pytest.approx(0.7, rel=1e-5)
    assert state["skipped"].item() == 0


def test_state_of_fgsm_measures_the_perturbation_of_every_token_type():
    state, batch, _ = one_batch([FGSMCallback(epsilon=0.02)])
    types = len(set(batch["input_ids"].flatten().tolist()) - {0})
    assert state["perturbation_norm"].item() == pytest.approx(0.02 * (types * 8) ** 0.5, rel=1e-4)


def test_state_of_accumulation_is_that_of_the_whole_loss():
    alone, _, _ = one_batch([FGMCallback()])
    divided, _, _ = one_batch([FGMCallback()], accumulation_steps=4)
    assert {k: v.item() for k, v in divided.items()} == pytest.approx({k: v.item() for k, v in alone.items()})


# Habits of fastNLP's users: fractions of a training, exceptions, one callback in two Trainers, own methods.


@pytest.mark.parametrize("start, first", [(0.07, 7), (0.5, 50), (0.29, 29), (0.001, 1), (7.5, 8)])
def test_a_fraction_begins_where_it_says(start, first):
    assert FGM(start=start).first_step(Progress(total_steps=100)) == first


def test_a_start_beyond_the_end_warns_once(said):
    train(Classifier(), [FGMCallback(start=1000)], n_batches=6)
    assert sum("will never act" in each for each in said.messages) == 1


def test_one_callback_in_two_running_trainers_is_refused_and_the_outer_one_goes_on():
    callback, messages = FGMCallback(), []

    def nest(trainer):
        if trainer.global_forward_batches == 2:
            with pytest.raises(ValueError) as caught:
                build(Classifier(), [callback], n_epochs=1).run()
            messages.append(str(caught.value))

    ours, theirs = Classifier(), Classifier()
    train(ours, [callback, callback_of(on_train_batch_end=nest)])
    train(theirs, [FGMCallback()])
    assert "one Trainer at a time" in messages[0] and "its own callback" in messages[0]
    assert torch.equal(weights(ours), weights(theirs))


def test_atta_refuses_overfit_batches_which_come_without_indices():
    with pytest.raises(ValueError, match=r"without `overfit_batches`.*but got 2. Give the dataloader"):
        build(Classifier(), [ATTACallback()], overfit_batches=2)


# Names that a model shares with this package, the terms in the Trainer's state, and what is said at the start.


class ItsOwnNames(Classifier):
    def train_step(self, input_ids, labels):
        out = super().train_step(input_ids, labels)
        return {**out, "kl": out["pred"] * 2, "vat": out["pred"], "gradient_penalty": "mine", "pred2": "mine"}


def test_what_a_model_returns_under_our_names_is_its_own():
    seen = []
    look = callback_of(on_before_backward=lambda trainer, outputs: seen.append(outputs))
    callbacks = [FGMCallback(), RDropCallback(), VATCallback(), LogCallback(every=1), look]
    trainer = train(ItsOwnNames(dropout=0.3), callbacks, n_batches=6)
    assert seen[-1]["pred2"] == "mine" and seen[-1]["kl"].shape == seen[-1]["vat"].shape == (4, 3)
    state = trainer.state["adv"]
    assert {"kl", "vat"} <= state.keys() and "gradient_penalty" not in state
    assert all(
        torch.as_tensor(value).shape == () and not getattr(value, "requires_grad", False) for value in state.values()
    )
    alone = train(ItsOwnNames(), [FGMCallback(), LogCallback(every=1)], n_batches=6)
    assert "kl" not in alone.state["adv"]


def test_the_term_of_a_model_with_r_drop_of_its_own_is_in_the_state():
    class Mixed(RDropMixin, Classifier):
        pass

    assert train(Mixed(dropout=0.3), [FGMCallback()]).state["adv"]["kl"] > 0


def test_one_line_says_what_is_perturbed_and_by_how_much(said):
    length = Classifier().word_embeddings.weight.norm(dim=1).mean().item()
    table = f"`word_embeddings.weight` (50 x 8, rows {length:.3g} long on average)"
    for callback, expected in {
        FGMCallback(0.5): f"FGM perturbs {table}: epsilon 0.5 = {0.5 / length:.2g} rows, shared by the micro-batch",
        PGDCallback(granularity="sequence"): f"PGD perturbs {table}: epsilon 1 = {1 / length:.2g} rows, per example",
        FGMCallback(norm="linf"): f"FGM perturbs {table}: epsilon 1 in each coordinate",
        FGMCallback(
            emb_name="head"
        ): "FGM perturbs `head.weight` (3 x 8), `head.bias` (3): epsilon 1, shared by the micro-batch",
        VATCallback(): f"VAT perturbs {table}",
    }.items():
        said.clear()
        build(Classifier(), [callback], n_batches=6).run()
        assert [each for each in said.messages if " perturbs " in each] == [expected]


# Arguments are live: what is assigned to a callback holds from the next batch on.


@pytest.mark.parametrize(
    "callback, values",
    [
        (FGMCallback, {"adv_weight": 0.5, "epsilon": 0.3}),
        (FGMCallback, {"replace": True, "inner_autocast": torch.bfloat16}),
        (PGDCallback, {"steps": 1, "norm": "linf"}),
        (RDropCallback, {"kl_weight": 0.1, "mode": "two_pass"}),
        (VATCallback, {"weight": 0.0, "dropout_mask": "same"}),
        (TAVATCallback, {"dropout_mask": "same", "alpha": 0.5}),
    ],
)
def test_assigned_arguments_train_as_those_of_the_constructor(callback, values):
    """In the first hook of the training, when the methods have been built."""
    models = [Classifier(dropout=0.3), Classifier(dropout=0.3)]
    late = callback()

    def assign(trainer, batch, indices):
        for name, value in values.items() if trainer.global_forward_batches == 0 else ():
            setattr(late, name, value)

    train(models[0], [late, callback_of(on_train_batch_begin=assign)])
    train(models[1], [callback(**values)])
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_an_assigned_argument_is_checked_with_the_others():
    callback = PGDCallback()
    with pytest.raises(ValueError, match="Expected `inner_autocast`"):
        callback.inner_autocast, callback.steps = torch.bfloat16, 1
    assert callback.steps == 3
