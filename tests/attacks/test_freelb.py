"""FreeLB trains on the mean loss along the ascent of its definition, written out on embedded inputs."""

from __future__ import annotations

import math

import pytest
import torch
from fastNLP import Callback
from references import (
    Siamese,
    assert_same,
    batch,
    classifier,
    differ,
    direction,
    gradients,
    loss_on,
    shrink,
    words,
)
from support import Bert, Classifier, assert_untouched, distance, loader, snapshot, train
from torch.nn.functional import cross_entropy

from fastnlp_adv.attacks.freelb import FreeLB
from fastnlp_adv.callbacks import FreeLBCallback

IDS, LABELS = batch(4, 7)
IDS[0] = 9  # one token in all places of an example
IDS[:2, 5:] = 0
LOSS = loss_on(IDS, LABELS)


def start(ids, width, init, generator, padding_idx=0):
    """Noise on real tokens, times init / sqrt(n H), with n counted by hand."""
    noise = torch.empty(*ids.shape, width, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    for example, row in enumerate(ids.tolist()):
        tokens = sum(i != padding_idx for i in row)
        for place, i in enumerate(row):
            noise[example, place] *= init / math.sqrt(tokens * width) if i != padding_idx else 0.0
    return noise


def reference(
    ids, loss_at, generator, width, *, epsilon, alpha, steps, init, clean=False, padding_idx=0, begin_pass=lambda: None
):
    """
    Adds the gradients of a step to those of the parameters.

    :param ids: those of each lookup.
    :param loss_at: the loss, given what is added to each lookup.
    :return: what was added in each pass.
    """
    d = [start(i, width, init, generator, padding_idx) for i in ids]
    seen = []
    if clean:
        begin_pass()
        loss_at([torch.zeros_like(x) for x in d]).backward()
    for _ in range(steps):
        d = [x.detach().requires_grad_() for x in d]
        seen.append([x.detach().clone() for x in d])
        begin_pass()
        (loss_at(d) / steps).backward()
        grads = [x.grad for x in d]
        d = [x.detach() for x in d]
        for x, g, i in zip(d, grads, ids, strict=True):
            for example in range(len(i)):
                real = torch.tensor([[float(t != padding_idx)] for t in i[example].tolist()], dtype=x.dtype)
                x[example] += alpha * direction(g[example] * real, "l2")
                if epsilon > 0:
                    x[example] = shrink(x[example], epsilon, "l2")
    return seen


def loss_at(model, ids, labels):
    """The loss of either model, with something added to its embedded inputs."""

    def loss(d):
        if isinstance(model, Classifier):
            hidden = model.rnn(model.dropout(model.word_embeddings(ids) + d[0]))[0].mean(1)
            return cross_entropy(model.head(model.dropout(hidden)), labels)
        embedded = model.back_bone.get_input_embeddings()(ids) + d[0]
        return model.back_bone(inputs_embeds=embedded, attention_mask=(ids != 0).long(), labels=labels).loss

    return loss


def attack_and_generator(model, seed=7, **arguments):
    attack = FreeLB(model, **arguments)
    attack.stream.generator = torch.Generator().manual_seed(seed)
    return attack, torch.Generator().manual_seed(seed)


def step(attack, model, loss=LOSS):
    model.zero_grad()
    attack.step(lambda: loss(model))
    return gradients(model)


def expected(model, generator, **arguments):
    model.zero_grad()
    arguments = {"epsilon": 0.0, "alpha": 0.1, "steps": 3, "init": 0.05, **arguments}
    reference([IDS], loss_at(model, IDS, LABELS), generator, 8, **arguments)
    return gradients(model)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.15, 5.0])  # no ball, one that is left and one that is not
@pytest.mark.parametrize(("alpha", "init"), [(0.1, 0.05), (0.2, 1.0)])
@pytest.mark.parametrize("clean", [False, True])
def test_a_step(epsilon, steps, alpha, init, clean):
    model = classifier()
    before = snapshot(model)
    arguments = {"epsilon": epsilon, "alpha": alpha, "steps": steps, "init": init, "clean": clean}
    attack, generator = attack_and_generator(model, **arguments)
    found = [step(attack, model) for _ in range(2)]
    attack.close()
    assert_untouched(model, before)
    for each in found:
        assert_same(each, expected(model, generator, **arguments))
    assert differ(*found) > 1e-4  # each step draws its own noise


@pytest.mark.parametrize("schedule", [{"start": 2}, {"every": 2}, {"warmup": 4}])
def test_schedules_keep_or_leave_out_the_clean_pass_with_the_others(schedule):
    """A step that is left out is plain; a strength scales the noise, the steps and the ball, and no loss."""
    model = classifier()
    sizes = {"epsilon": 0.2, "alpha": 0.1, "init": 0.5}
    attack, generator = attack_and_generator(model, **sizes, clean=True, **schedule)
    strengths = {"start": [0, 0, 1, 1], "every": [1, 0, 1, 0], "warmup": [0.25, 0.5, 0.75, 1]}
    for strength in strengths[next(iter(schedule))]:
        found = step(attack, model)
        if strength:
            wanted = expected(model, generator, **{k: v * strength for k, v in sizes.items()}, clean=True)
        else:
            model.zero_grad()
            LOSS(model).backward()
            wanted = gradients(model)
        assert_same(found, wanted)


def test_with_a_clean_pass_the_reported_loss_is_the_clean_one():
    model = classifier()
    attack = FreeLB(model, init=2.0, clean=True)
    assert attack.step(lambda: LOSS(model)).item() == pytest.approx(LOSS(model).item())
    assert attack.cost == (4, 4, 0)


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_with_a_fraction_the_clean_pass_is_on_all_and_the_others_on_the_attacked_rows(fraction):
    model = classifier()
    sizes = {"epsilon": 0.15, "alpha": 0.1, "init": 0.5, "steps": 3}
    rows = FreeLB(classifier(), clean=True, fraction=fraction).choose(len(IDS))
    attack, generator = attack_and_generator(model, **sizes, clean=True, fraction=fraction)
    model.zero_grad()
    attack.step(lambda part: loss_on(part["ids"], part["labels"])(model), {"ids": IDS, "labels": LABELS})
    found = gradients(model)
    model.zero_grad()
    LOSS(model).backward()
    reference([IDS[rows]], loss_at(model, IDS[rows], LABELS[rows]), generator, 8, **sizes)
    assert_same(found, gradients(model))


def test_a_fraction_needs_the_clean_pass_and_a_new_dropout_mask():
    with pytest.raises(ValueError, match="Expected `clean` to be True with a `fraction` below 1, but got False"):
        FreeLB(fraction=0.5)
    with pytest.raises(ValueError, match="Expected `dropout_mask` to be 'new' with a `fraction` below 1"):
        FreeLB(clean=True, fraction=0.5, dropout_mask="same")


class Gradients(Callback):
    """Those of all parameters at each optimizer step."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def on_before_optimizers_step(self, trainer, optimizers):
        self.seen.append(gradients(self.model))


@pytest.mark.parametrize("model_class", [Classifier, Bert])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("dropout", "mask"), [(0.0, "new"), (0.3, "new"), (0.3, "same")])
@pytest.mark.parametrize("clean", [False, True])
def test_in_a_trainer(model_class, accumulation, dropout, mask, clean):
    ours, theirs = model_class(dropout=dropout).double(), model_class(dropout=dropout).double()
    arguments = {"epsilon": 0.2, "alpha": 0.1, "steps": 3, "init": 0.5, "clean": clean}
    found = Gradients(ours)
    train(ours, [FreeLBCallback(**arguments, dropout_mask=mask), found], accumulation_steps=accumulation, n_batches=6)
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)  # the noise starts from the default seed
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05)
    wanted = []
    for number, each in enumerate(loader(), start=1):
        states = []

        def begin_pass(states=states):
            if mask == "same" and states:
                torch.set_rng_state(states[0])
            states.append(torch.get_rng_state())

        at, ids = loss_at(theirs, each["input_ids"], each["labels"]), each["input_ids"]
        width = 8 if model_class is Classifier else 16
        reference([ids], lambda d, at=at: at(d) / accumulation, generator, width, **arguments, begin_pass=begin_pass)
        if number % accumulation == 0:
            wanted.append(gradients(theirs))
            optimizer.step()
            optimizer.zero_grad()
    assert len(found.seen) == len(wanted) == 6 // accumulation
    for ours_, theirs_ in zip(found.seen, wanted, strict=True):
        assert_same(ours_, theirs_, rtol=1e-8)
    assert distance(ours, theirs) < 1e-9
    assert distance(ours, model_class(dropout=dropout).double()) > 1e-4


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_two_lookups_in_a_forward(padding_idx):
    left, right = (batch(4, n, vocab=12, seed=seed)[0] for seed, n in enumerate((7, 2)))
    model = Siamese(padding_idx=padding_idx)
    arguments = {"epsilon": 0.2, "alpha": 0.1, "steps": 3, "init": 0.5}
    attack, generator = attack_and_generator(model, **arguments)
    found = step(attack, model, lambda m: m(left, right))
    model.zero_grad()
    attack.close()

    def at(d):
        return model.compare(model.emb(left) + d[0], model.emb(right) + d[1])

    padding = -1 if padding_idx is None else padding_idx
    reference([left, right], at, generator, 6, padding_idx=padding, **arguments)
    assert_same(found, gradients(model))


def added(model, attack, closure):
    """What a step adds to the lookups, pass by pass."""
    seen = []

    def look(module, args, output):
        seen.append((output - words(model).weight[IDS]).detach())

    with words(model).register_forward_hook(look):  # after the attack's own
        attack.step(closure)
    return seen


def test_perturbations_and_their_report():
    model = classifier()
    attack, generator = attack_and_generator(model, epsilon=0.15, steps=3)
    found = added(model, attack, lambda: LOSS(model))
    wanted = reference([IDS], loss_at(model, IDS, LABELS), generator, 8, epsilon=0.15, alpha=0.1, steps=3, init=0.05)
    torch.testing.assert_close(torch.stack(found), torch.stack([d for (d,) in wanted]))
    assert attack.perturbation_norm.item() == pytest.approx(found[-1].norm().item())
    assert found[-1].flatten(1).norm(dim=1).max() == pytest.approx(0.15)
    assert attack.skipped.item() == 0


def test_an_example_without_a_finite_gradient_keeps_still():
    model = classifier()

    def closure(factor):
        factors = torch.tensor([1.0, factor, 1.0, 1.0], dtype=torch.float64)
        return lambda: (factors * cross_entropy(model(IDS), LABELS, reduction="none")).sum()

    passes = {f: added(model, attack_and_generator(model)[0], closure(f)) for f in (1.0, math.inf)}
    others = [0, 2, 3]
    for finite, infinite in zip(passes[1.0], passes[math.inf], strict=True):
        torch.testing.assert_close(infinite[others], finite[others])
        assert torch.equal(infinite[1], passes[math.inf][0][1])
    assert not torch.equal(passes[1.0][1][1], passes[1.0][0][1])


def test_half_precision_keeps_the_perturbation_in_single():
    model = Classifier(dropout=0.0).bfloat16()
    attack = FreeLB(model)
    with attack.running() as passes:
        for _ in passes:
            LOSS(model).backward()
            (delta,) = attack.taps[0].deltas()
            assert delta.value.dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.bfloat16 for p in model.parameters())
