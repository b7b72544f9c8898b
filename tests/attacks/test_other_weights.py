"""Parameters that are not looked up are perturbed in place along this micro-batch's gradient, and come back."""

from __future__ import annotations

import warnings

import pytest
import torch
from references import ATTACKS, LOSS, assert_same, bert, bert_loss, classifier, on_weights, step
from support import Bert, assert_untouched, collate, samples, snapshot, train

from fastnlp_adv import FGM, PGD, FGMCallback


@ATTACKS
@pytest.mark.filterwarnings("ignore:`emb_name=")
@pytest.mark.parametrize("emb_name", ["LayerNorm.weight", "0.intermediate", "embeddings", "_embeddings"])
def test_any_parameter_by_name(build, reference, emb_name):
    """`embeddings` matches three embeddings and their LayerNorm at once, each of which has a norm and a ball."""
    model = bert()
    before = snapshot(model)
    attack = build(model, emb_name)
    found = step(attack, model, bert_loss)
    attack.close()
    names = [name for name, _ in model.named_parameters() if emb_name in name]
    assert_same(found, on_weights(model, bert_loss, names, **reference))
    assert_untouched(model, before)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_norms_and_a_random_start(norm):
    model = classifier()
    fgm = FGM(model, 0.7, emb_name="head", norm=norm)
    expected = on_weights(model, LOSS, ["head.weight", "head.bias"], steps=[0.7], norm=norm)
    assert_same(step(fgm, model, LOSS), expected)
    pgd = PGD(model, 0.5, alpha=0.0, steps=1, random_init=True, emb_name="head.weight", norm=norm)
    origin = model.head.weight.detach().clone()
    LOSS(model).backward()
    with pgd.attack(lambda: LOSS(model)):
        start = (model.head.weight - origin).detach()
    assert 0 < (start.norm() if norm == "l2" else start.abs().max()) <= 0.5
    assert torch.equal(model.head.weight, origin)


def test_embeddings_are_not_written_with_the_rest():
    model = classifier().bfloat16()
    with FGM(model, 3.0, emb_name="*") as fgm:
        before = snapshot(model)
        LOSS(model).backward()
        with fgm.attack():
            written = [n for n, p in model.named_parameters() if not torch.equal(p, before[0][n])]
        assert written == [n for n, _ in model.named_parameters() if "embeddings" not in n]
        assert_untouched(model, before)


def test_gradients_without_a_direction_perturb_nothing():
    model = classifier()
    fgm = FGM(model, 3.0, emb_name="head")
    (LOSS(model) * float("nan")).backward()
    with fgm.attack():
        assert torch.equal(model.head.weight, classifier().head.weight)
    assert fgm.skipped.item() == 2


def test_a_name_that_fits_more_than_embeddings_says_so_once():
    model = Bert()
    batch = {name: value[:4] for name, value in collate(samples()).items()}
    text = r"`emb_name='emb'` .*LayerNorm.weight`, `.*LayerNorm.bias` are not looked up"
    with pytest.warns(UserWarning, match=text) as got, FGM(model, emb_name="emb") as fgm:
        for _ in range(3):
            model.train_step(**batch)["loss"].backward()
            with fgm.attack():
                model.train_step(**batch)["loss"].backward()
    assert len(got) == 1
    with warnings.catch_warnings(record=True) as got:
        warnings.simplefilter("default")
        train(Bert(), [FGMCallback(emb_name="emb")])
    assert sum("not looked up" in str(w.message) for w in got) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("word_embeddings", "LayerNorm", "*embeddings*_embeddings.weight", None):
            FGM(Bert(), emb_name=name).close()
