"""Names that a model shares with this package, the terms in the Trainer's state, and what is said at the start."""

from __future__ import annotations

import torch
from fastNLP import Callback
from support import Classifier, build, train

from fastnlp_adv import (
    FGMCallback,
    GradientPenaltyCallback,
    LogCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    RDropMixin,
    SMARTCallback,
    VATCallback,
)


class Mixed(RDropMixin, Classifier):
    """R-Drop of its own."""


class ItsOwnNames(Classifier):
    def train_step(self, input_ids, labels):
        out = super().train_step(input_ids, labels)
        return {**out, "kl": out["pred"] * 2, "vat": out["pred"], "gradient_penalty": "mine", "pred2": "mine"}


def test_what_a_model_returns_under_our_names_is_its_own():
    seen = []

    class Look(Callback):
        def on_before_backward(self, trainer, outputs):
            seen.append(outputs)

    callbacks = [FGMCallback(), RDropCallback(), VATCallback(), LogCallback(every=1), Look()]
    trainer = train(ItsOwnNames(dropout=0.3), callbacks, n_batches=6)
    assert seen[-1]["pred2"] == "mine" and seen[-1]["kl"].shape == seen[-1]["vat"].shape == (4, 3)
    state = trainer.state["adv"]
    assert {"kl", "vat"} <= state.keys() and "gradient_penalty" not in state
    assert all(
        torch.as_tensor(value).shape == () and not getattr(value, "requires_grad", False) for value in state.values()
    )
    alone = train(ItsOwnNames(), [FGMCallback(), LogCallback(every=1)], n_batches=6)
    assert "kl" not in alone.state["adv"]


def test_every_term_is_in_the_state():
    callbacks = [RDropCallback(), SMARTCallback(bregman_weight=1.0), R3FCallback(), GradientPenaltyCallback()]
    trainer = train(Classifier(dropout=0.3), callbacks, n_batches=6)
    assert {"kl", "smart", "bregman", "r3f", "gradient_penalty"} <= trainer.state["adv"].keys()
    trainer = train(Mixed(dropout=0.3), [FGMCallback()], n_batches=6)
    assert trainer.state["adv"]["kl"] > 0  # of a model with R-Drop of its own


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
        assert [each.getMessage() for each in said.records if " perturbs " in each.getMessage()] == [expected]
