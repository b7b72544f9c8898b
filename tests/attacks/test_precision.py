"""Half precision, autocast, and gradients that are zero or not finite."""

from __future__ import annotations

import math

import pytest
import torch
from references import ATTACKS, IDS, LABELS, LOSS, bert, bert_loss, classifier, each_granularity, step
from support import Classifier

from fastnlp_adv import FGM, PGD


@each_granularity
@pytest.mark.parametrize("attack", [FGM, PGD])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_perturbation_of_a_half_precision_model_is_as_long_as_it_should_be(attack, granularity, dtype):
    """Measured on what the lookups gave; bfloat16 keeps 8 bits. A sum of squares in float16 would overflow."""
    model = torch.nn.Embedding(50, 512, dtype=dtype)
    weight = torch.full((512,), 200.0, dtype=dtype)
    attack = attack(model, 0.5, granularity=granularity)

    def loss():
        return (model(IDS) * weight).sum()

    loss().backward()
    with attack.attack(**({"closure": loss} if isinstance(attack, PGD) else {})):
        delta = (model(IDS).double() - model.weight[IDS].double()).detach()
    if granularity == "vocab":
        rows = torch.zeros(50, 512, dtype=torch.float64)
        rows[IDS] = delta
        lengths = rows.norm()
    else:
        lengths = delta.flatten(1).norm(dim=1) if granularity == "sequence" else delta.norm(dim=-1)
    assert torch.allclose(lengths, torch.tensor(0.5, dtype=torch.float64), rtol=0.05)


@ATTACKS
@each_granularity
def test_autocast(build, reference, granularity):
    """The same passes in bfloat16; the weights and the perturbation stay in single precision."""
    model = bert().float()
    attack = build(model, granularity=granularity)
    found = step(attack, model, torch.autocast("cpu", torch.bfloat16)(bert_loss))
    assert attack.perturbation_norm.dtype == torch.float32
    exact = step(attack, model.double(), bert_loss)
    flat, wanted = (torch.cat([g.double().flatten() for g in grads.values()]) for grads in (found, exact))
    assert torch.cosine_similarity(flat, wanted, dim=0) > 0.99


@each_granularity
@pytest.mark.parametrize(("norm", "bad"), [("l2", 0.0), ("l2", math.inf), ("linf", math.nan)])
def test_gradients_without_a_direction_perturb_nothing_and_are_counted(bad, norm, granularity):
    model = classifier(padding_idx=None)
    fgm = FGM(model, 0.7, norm=norm, granularity=granularity)
    pgd = PGD(model, 0.7, norm=norm, granularity=granularity)
    for count in (1, 2):
        (bad * LOSS(model)).backward()
        with fgm.attack():
            assert torch.equal(model.word_embeddings(IDS), model.word_embeddings.weight[IDS])
        assert fgm.skipped.item() == count
    with pgd.attack(lambda: bad * LOSS(model)):
        assert torch.equal(model.word_embeddings(IDS), model.word_embeddings.weight[IDS])
    assert pgd.skipped.item() == pgd.steps
    LOSS(model).backward()
    with fgm.attack():
        assert not torch.equal(model.word_embeddings(IDS), model.word_embeddings.weight[IDS])
    assert fgm.skipped.item() == 2


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_bad_example_does_not_spoil_the_others(bad):
    """By sequence, an example without a direction stays where it is and the others move by epsilon."""
    model = classifier(padding_idx=None)
    factor = torch.tensor([1.0, bad, 1.0, 1.0], dtype=torch.float64)
    fgm = FGM(model, 0.7, granularity="sequence")
    (factor * torch.nn.functional.cross_entropy(model(IDS), LABELS, reduction="none")).sum().backward()
    with fgm.attack():
        delta = model.word_embeddings(IDS) - model.word_embeddings.weight[IDS]
    assert delta.flatten(1).norm(dim=1).tolist() == pytest.approx([0.7, 0.0, 0.7, 0.7])
    assert fgm.skipped.item() == (0 if bad == 0.0 else 1)


@pytest.mark.parametrize("scale", [1e-28, 1.0, 1e28])
@each_granularity
def test_the_scale_of_the_loss_does_not_matter(scale, granularity):
    """As under a GradScaler, in single precision, where the squares of such gradients are 0 or inf."""
    model = Classifier(dropout=0.0)
    fgm = FGM(model, 0.7, granularity=granularity)
    deltas = []
    for factor in (1.0, scale):
        (factor * LOSS(model)).backward()
        with fgm.attack(), torch.no_grad():
            deltas.append(model.word_embeddings(IDS) - model.word_embeddings.weight[IDS])
    torch.testing.assert_close(deltas[1], deltas[0], rtol=1e-3, atol=1e-5)
    assert fgm.skipped.item() == 0
