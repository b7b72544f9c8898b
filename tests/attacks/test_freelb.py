"""
FreeLB and TA-VAT train on the mean loss along the ascents of their definitions, written out on embedded inputs with
loops over examples, positions and tokens.
"""

from __future__ import annotations

import math

import pytest
import torch
from references import (
    IDS,
    LABELS,
    LOSS,
    Siamese,
    Two,
    additions,
    along_an_ascent,
    assert_same,
    batch,
    classifier,
    classifier_from,
    differ,
    direction,
    gradients,
    length,
    loss_on,
    loss_with,
    noise_on,
    same_noise,
    shrink,
)
from support import assert_untouched, snapshot

from fastnlp_adv import TAVAT, FreeLB

ARGUMENTS = {"epsilon": 0.5, "alpha": 0.1, "steps": 3, "init": 0.2}


def freelb(ids, tables, loss_at, generator, width=8, *, epsilon, alpha, init, padding_idx=0, **passes):
    """Adds the gradients of a step to those of the parameters; returns what was added in each pass."""

    def ascend(d, grad, row):
        real = (row != padding_idx).unsqueeze(-1)
        d += alpha * direction(grad * real, "l2")
        if epsilon > 0:
            d.copy_(shrink(d, epsilon, "l2"))

    starts = [[noise_on(i, width, init, generator, padding_idx)] for i in ids]
    return along_an_ascent(ids, starts, loss_at, ascend, **passes)


def start(ids, table, init, generator, padding_idx):
    """FreeLB's noise, and the rows of the table over their norm."""
    eta = table[ids].double() * (ids != padding_idx).unsqueeze(-1)
    size = length(eta)
    return noise_on(ids, table.shape[1], init, generator, padding_idx), eta / size if size > 0 else eta


def ascend(delta, eta, grad, ids, padding_idx, *, epsilon, alpha):
    """One example's two parts after an ascent step."""
    real = ids != padding_idx
    delta += alpha * direction(grad * real.unsqueeze(-1), "l2")
    tokens = real.nonzero().flatten().tolist()
    for place in tokens:
        eta[place] += alpha * direction(grad[place], "l2")
    largest = max((length(eta[place]) for place in tokens), default=0.0)
    for place in tokens:
        eta[place] *= length(eta[place]) / largest if largest > 0 else 0.0
    size = length(delta + eta)
    if epsilon > 0 and size > epsilon:
        delta *= epsilon / size
        eta *= epsilon / size


def tavat(ids, tables, loss_at, generator, width=8, *, epsilon, alpha, init, padding_idx=0, **passes):
    """The same, and writes the table."""
    (table,) = tables
    parts = [start(i, table, init, generator, padding_idx) for i in ids]

    def up(delta, eta, grad, row):
        ascend(delta, eta, grad, row, padding_idx, epsilon=epsilon, alpha=alpha)

    seen = along_an_ascent(ids, parts, loss_at, up, **passes)
    tokens, etas = torch.cat([i.flatten() for i in ids]), torch.cat([eta.flatten(0, 1) for _, eta in parts])
    for token in {*tokens.tolist()} - {padding_idx}:
        table[token] = etas[tokens == token].mean(0)
    return seen


each_method = pytest.mark.parametrize(
    ("method", "reference"), [(FreeLB, freelb), (TAVAT, tavat)], ids=["freelb", "tavat"]
)


def tables_of(attack):
    return [table.clone() for table in getattr(attack, "tables", {}).values()]


def attack_on(method, model, **arguments):
    """The attack, its table as it is now if it has one, and a generator that draws what the attack will."""
    attack = method(model, **arguments)
    return attack, tables_of(attack), same_noise(attack)


def step(attack, model, loss=LOSS):
    """The gradients and the table after a step."""
    model.zero_grad()
    attack.step(lambda: loss(model))
    return gradients(model), tables_of(attack)


def assert_as_found(found, model, tables):
    """The table is kept in single precision."""
    grads, kept = found
    assert_same(grads, gradients(model), rtol=1e-5 if tables else 1e-10)
    torch.testing.assert_close(kept, tables, rtol=1e-5, atol=1e-7)


@each_method
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 5.0])  # no ball, one that is left and one that is not
@pytest.mark.parametrize(("init", "clean"), [(1.0, True), (1.0, False), (0.0, False)])
def test_steps_in_a_row(method, reference, epsilon, steps, init, clean):
    model = classifier()
    before = snapshot(model)
    arguments = {"epsilon": epsilon, "alpha": 0.5, "steps": steps, "init": init, "clean": clean}
    attack, tables, generator = attack_on(method, model, **arguments)
    found = [step(attack, model) for _ in range(3)]
    attack.close()
    assert_untouched(model, before)
    for each in found:
        model.zero_grad()
        reference([IDS], tables, loss_with(model, IDS, LABELS), generator, **arguments)
        assert_as_found(each, model, tables)
    assert init == 0 or differ(found[0][0], found[1][0]) > 1e-4  # each step draws its own noise


@each_method
def test_with_a_fraction_the_clean_pass_is_on_all_and_the_others_on_the_attacked_rows(method, reference):
    model = classifier()
    rows = method(classifier(), clean=True, fraction=0.5).choose(len(IDS))
    attack, tables, generator = attack_on(method, model, **ARGUMENTS, clean=True, fraction=0.5)
    attack.step(lambda part: loss_on(part["ids"], part["labels"])(model), {"ids": IDS, "labels": LABELS})
    found = gradients(model), tables_of(attack)
    model.zero_grad()
    LOSS(model).backward()
    reference([IDS[rows]], tables, loss_with(model, IDS[rows], LABELS[rows]), generator, **ARGUMENTS)
    assert_as_found(found, model, tables)


def test_a_fraction_needs_the_clean_pass_and_a_new_dropout_mask():
    with pytest.raises(ValueError, match="Expected `clean` to be True with a `fraction` below 1, but got False"):
        FreeLB(fraction=0.5)
    with pytest.raises(ValueError, match="Expected `dropout_mask` to be 'new' with a `fraction` below 1"):
        FreeLB(clean=True, fraction=0.5, dropout_mask="same")


@each_method
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_two_lookups_in_a_forward(method, reference, padding_idx):
    left, right = (batch(4, n, vocab=12, seed=seed)[0] for seed, n in enumerate((7, 2)))
    model = Siamese(padding_idx=padding_idx)
    attack, tables, generator = attack_on(method, model, **ARGUMENTS)
    found = step(attack, model, lambda m: m(left, right))
    attack.close()
    model.zero_grad()
    padding = -1 if padding_idx is None else padding_idx
    reference([left, right], tables, model.at(left, right), generator, 6, padding_idx=padding, **ARGUMENTS)
    assert_as_found(found, model, tables)


def test_the_defaults_and_the_report():
    model = classifier()
    attack, _, generator = attack_on(FreeLB, model, epsilon=0.15, steps=3)
    attack.step(lambda: LOSS(model))
    defaults = {"alpha": 0.1, "init": 0.05}
    *_, (last,) = freelb([IDS], [], loss_with(model, IDS, LABELS), generator, epsilon=0.15, steps=3, **defaults)
    assert attack.perturbation_norm.item() == pytest.approx(last.norm().item())
    assert attack.skipped.item() == 0


def test_each_embedding_has_a_table():
    model = Two(padding_idx=0)
    attack = TAVAT(model, emb_name="s.weight")
    assert [tuple(table.shape) for table in attack.tables.values()] == [(50, 8), (12, 4)]
    before = {name: table.clone() for name, table in attack.tables.items()}
    step(attack, model)
    for name, ids in (("words.weight", IDS[IDS != 0]), ("shapes.weight", IDS % 12)):
        written = (attack.tables[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert written == sorted({*ids.flatten().tolist()})


def test_groups_without_a_finite_gradient_make_no_step():
    """One token's gradient is infinite: neither it nor its example ascends, and all others do."""
    model = classifier()
    factors = torch.ones(4, 7, 8, dtype=torch.float64)
    factors[2, 1, 3] = math.inf

    def loss(embedded):
        embedded.register_hook(lambda grad: grad * factors)
        return classifier_from(LABELS)(model, embedded)

    attack, tables, generator = attack_on(TAVAT, model, **ARGUMENTS)
    with additions(model.word_embeddings, IDS) as found:
        attack.step(lambda: loss(model.word_embeddings(IDS)))
    attack.close()
    wanted = tavat([IDS], tables, lambda d: loss(model.word_embeddings(IDS) + d[0]), generator, **ARGUMENTS)
    torch.testing.assert_close(torch.stack(found), torch.stack([d for (d,) in wanted]))
    torch.testing.assert_close(tables_of(attack), tables)
    assert tables[0].isfinite().all()


def test_a_model_that_was_moved_is_refused():
    model = classifier()
    attack, loss = TAVAT(model), loss_on(IDS.to("meta"), LABELS.to("meta"))
    model.to("meta")
    with pytest.raises(RuntimeError, match=r"the attack was built on, cpu, but got ids on meta. Build the attack"):
        attack.step(lambda: loss(model))


def test_the_table_of_another_embedding_is_refused():
    attack, tables, _ = attack_on(TAVAT, classifier())
    with pytest.raises(ValueError, match=r"\(50, 8\).* but got .*\(50, 4\)"):
        attack.load_state_dict(TAVAT(classifier(hidden=4)).state_dict())
    assert torch.equal(*tables_of(attack), *tables)
