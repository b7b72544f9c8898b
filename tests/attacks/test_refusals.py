"""Models that an attack cannot work on are refused with a message that says what was found and what to do."""

from __future__ import annotations

import pytest
import torch
from references import IDS, LABELS, LOSS, batch, bert, bert_loss, classifier, loss_on, step
from support import assert_untouched, snapshot

from fastnlp_adv import FGM, PGD

ALL = pytest.mark.parametrize(
    "attack",
    [FGM, lambda m: FGM(m, replace=True), lambda m: FGM(m, granularity="token"), PGD, lambda m: PGD(m, replace=True)],
    ids=["fgm", "fgm-replace", "fgm-token", "pgd", "pgd-replace"],
)


@ALL
def test_inputs_embeds(attack):
    model = bert()
    attack = attack(model)
    before = snapshot(model)
    embedded = model.get_input_embeddings().weight[IDS].detach()
    with pytest.raises(RuntimeError, match=r"to look up embedding `bert.*never did.*ids rather than `inputs_embeds`"):
        attack.step(lambda: bert_loss(model, inputs_embeds=embedded))
    assert_untouched(model, before)
    step(attack, model, bert_loss)  # it still works


def without_gradients(table, ids):
    with torch.no_grad():
        return table(ids)


@ALL
@pytest.mark.parametrize("look_up", [without_gradients, lambda table, ids: table.weight[ids]], ids=["no_grad", "index"])
def test_a_lookup_that_the_attack_does_not_see(attack, look_up):
    class Model(type(classifier())):
        def forward(self, ids):
            return self.head(self.rnn(look_up(self.word_embeddings, ids))[0].mean(1))

    model = Model().double()
    attack = attack(model)
    with pytest.raises(RuntimeError, match=r"it never did \(with gradients on\).* rather than index its weight"):
        attack.step(lambda: LOSS(model))


@pytest.mark.parametrize("replace", [False, True])
def test_a_lookup_that_the_loss_does_not_depend_on(replace):
    model = classifier()

    def loss():
        model(IDS)
        return model.head(torch.ones(4, 8, dtype=torch.float64)).square().sum()

    with pytest.raises(RuntimeError, match=r"a backward pass through the lookups .* a loss that depends on the emb"):
        FGM(model, replace=replace).step(loss)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_positions_refuse_a_pass_of_another_shape(granularity):
    model = classifier()
    fgm = FGM(model, granularity=granularity)
    lengths = iter([7, 5])

    def loss():
        return loss_on(IDS[:, : next(lengths)], LABELS)(model)

    with pytest.raises(RuntimeError, match=r"same shape, but got \(4, 5\) where the first pass had \(4, 7\)"):
        fgm.step(loss)


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_positions_refuse_a_pass_with_another_lookup(granularity):
    """Or it would go unperturbed without a word."""
    model = classifier()
    fgm = FGM(model, granularity=granularity)
    LOSS(model).backward()
    with fgm.attack():
        model(IDS)
        with pytest.raises(RuntimeError, match="look up as often as the first pass, 1 times"):
            model(IDS)


def test_vocab_follows_tokens_into_a_pass_of_another_shape():
    """What perturbing the weights does."""
    model = classifier()
    fgm = FGM(model, 0.7)
    LOSS(model).backward()
    grad = model.word_embeddings.weight.grad
    moved = model.word_embeddings.weight + 0.7 * grad / grad.norm()
    ids = batch(3, 5, seed=9)[0]
    with fgm.attack():
        torch.testing.assert_close(model.word_embeddings(ids), moved[ids], rtol=1e-12, atol=1e-12)
