"""FGM and FGSM in plain loops give the gradients of the textbook, which perturbs the weights or the embedded inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    assert_same,
    batch,
    bert,
    classifier,
    classifier_from,
    differ,
    gradients,
    loss_on,
    name_of,
    on_positions,
    on_weights,
    step,
    words,
)
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, FGSM

NORM = pytest.mark.parametrize("norm", ["l2", "linf"])
IDS, LABELS = batch(4, 7)
IDS[:2, 5:] = 0


def bert_loss(model):
    return model(input_ids=IDS, attention_mask=(IDS != 0).long(), labels=LABELS).loss


def bert_from(model, embedded):
    return model(inputs_embeds=embedded, attention_mask=(IDS != 0).long(), labels=LABELS).loss


CASES = {
    "classifier": (classifier, loss_on(IDS, LABELS), classifier_from(LABELS)),
    "bert": (bert, bert_loss, bert_from),
}
EACH_MODEL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@EACH_MODEL
@NORM
@pytest.mark.parametrize(("adv_weight", "replace"), [(1.0, False), (0.3, False), (1.0, True), (2.0, True)])
def test_vocab_is_a_perturbation_of_the_weight(case, norm, adv_weight, replace):
    build, loss_of, _ = case
    model = build()
    before = snapshot(model)
    attack = FGM(model, 0.7, norm=norm, adv_weight=adv_weight, replace=replace)
    found = step(attack, model, loss_of)
    attack.close()
    expected = on_weights(
        model, loss_of, [name_of(model)], steps=[0.7], norm=norm, adv_weight=adv_weight, replace=replace
    )
    assert_same(found, expected)
    assert_untouched(model, before)


@EACH_MODEL
@NORM
@pytest.mark.parametrize("granularity", ["sequence", "token"])
@pytest.mark.parametrize(("adv_weight", "replace"), [(0.3, False), (1.0, True)])
def test_positions_are_a_perturbation_of_the_embedded_input(case, norm, granularity, adv_weight, replace):
    build, loss_of, loss_from = case
    model = build()
    arguments = {"norm": norm, "adv_weight": adv_weight, "replace": replace}
    found = step(FGM(model, 0.7, granularity=granularity, **arguments), model, loss_of)
    expected = on_positions(model, IDS, loss_from, words, per_token=granularity == "token", steps=[0.7], **arguments)
    assert_same(found, expected)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    epsilon=st.floats(0, 5),
    granularity=st.sampled_from(["vocab", "sequence", "token"]),
    norm=st.sampled_from(["l2", "linf"]),
    vocab=st.sampled_from([1, 3, 50]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_batch(shape, epsilon, granularity, norm, vocab, seed):
    """Repeated tokens, padding alone, one position, no perturbation."""
    ids, labels = batch(*shape, vocab=vocab, seed=seed)
    model = classifier(seed=seed)
    found = step(FGM(model, epsilon, granularity=granularity, norm=norm), model, loss_on(ids, labels))
    if granularity == "vocab":
        expected = on_weights(model, loss_on(ids, labels), [name_of(model)], steps=[epsilon], norm=norm)
    else:
        expected = on_positions(
            model, ids, classifier_from(labels), words, per_token=granularity == "token", steps=[epsilon], norm=norm
        )
    assert_same(found, expected)


def test_the_granularities_and_norms_differ():
    """Or the tests above would show little."""
    model = classifier()
    loss = loss_on(IDS, LABELS)
    plain = step(FGM(model, 0.0), model, loss)
    kinds = [("vocab", "l2"), ("vocab", "linf"), ("sequence", "l2"), ("token", "l2"), ("token", "linf")]
    found = [step(FGM(model, 0.7, granularity=kind, norm=norm), model, loss) for kind, norm in kinds]
    for i, one in enumerate([plain, *found]):
        assert all(differ(one, other) > 1e-3 for other in found[i:])


def test_dropout_masks_are_those_of_two_forwards():
    model = classifier(dropout=0.5)
    loss = loss_on(IDS, LABELS)
    torch.manual_seed(3)
    found_loss = FGM(model, 0.7).step(lambda: loss(model))
    found = gradients(model)
    torch.manual_seed(3)
    assert_same(found, on_weights_of_two_forwards(model, loss))
    torch.manual_seed(3)
    assert torch.equal(found_loss, loss(model))


def on_weights_of_two_forwards(model, loss_of, epsilon=0.7):
    """`on_weights` runs the clean pass once for each of its gradients; with dropout the second would be another one."""
    weight = words(model).weight
    model.zero_grad()
    loss_of(model).backward()
    origin = weight.detach().clone()
    with torch.no_grad():
        weight += epsilon * weight.grad / (weight.grad**2).sum().sqrt()
    loss_of(model).backward()
    with torch.no_grad():
        weight.copy_(origin)
    return gradients(model)


@pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])
def test_fgsm_is_fgm_along_the_sign(granularity):
    model = classifier()
    loss = loss_on(IDS, LABELS)
    found = step(FGSM(model, granularity=granularity), model, loss)
    assert_same(found, step(FGM(model, 0.003, granularity=granularity, norm="linf"), model, loss))
    assert_same(
        step(FGSM(model, 0.5, norm="l2", granularity=granularity), model, loss),
        step(FGM(model, 0.5, granularity=granularity), model, loss),
    )


def test_the_direction_is_that_of_finite_differences():
    """Nothing but forward passes: moving the rows of the batch's tokens, one number after another."""
    model = classifier()
    weight, h, loss = model.word_embeddings.weight, 1e-6, loss_on(IDS, LABELS)
    slope = torch.zeros_like(weight)
    with torch.no_grad():
        for token in set(IDS.flatten().tolist()) - {0}:
            for i in range(weight.shape[1]):
                weight[token, i] += h
                up = loss(model)
                weight[token, i] -= 2 * h
                slope[token, i] = (up - loss(model)) / (2 * h)
                weight[token, i] += h
    model.zero_grad()
    fgm = FGM(model, 0.7)
    loss(model).backward()
    with fgm.attack(), torch.no_grad():
        delta = model.word_embeddings(IDS) - weight[IDS]
    assert torch.allclose(delta, 0.7 * (slope / slope.norm())[IDS], atol=1e-7)


def test_what_the_attack_reports():
    model = classifier()
    fgm = FGM(model, 0.7)
    loss = loss_on(IDS, LABELS)
    fgm.step(lambda: loss(model))
    model.zero_grad()
    loss(model).backward()
    assert fgm.grad_norm.item() == pytest.approx(model.word_embeddings.weight.grad.norm().item())
    assert fgm.perturbation_norm.item() == pytest.approx(0.7)
    assert fgm.skipped.item() == 0


def test_several_embeddings_have_a_norm_each():
    """Position embeddings are looked up by other ids than words; matched by one name."""
    model = bert()
    names = [n for n, _ in model.named_parameters() if n.endswith("_embeddings.weight")]
    assert len(names) == 3
    found = step(FGM(model, 0.7, emb_name="_embeddings"), model, bert_loss)
    assert_same(found, on_weights(model, bert_loss, names, steps=[0.7]))
    assert differ(found, step(FGM(model, 0.7), model, bert_loss)) > 1e-3
