"""What the attacks should do, written out on cloned weights and on embedded inputs, with loops over the definitions.

A ``loss_of(model)`` runs the model on the batch. All gradients are of a copy, so the model under test is left alone.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from support import CLASSES, VOCAB, Classifier, assert_untouched, bert_config, snapshot
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import FGM, PGD

#: ``@ATTACKS`` runs a test with FGM and with PGD: what builds the attack, and its ascent steps for the references below
ATTACKS = pytest.mark.parametrize(
    ("build", "reference"),
    [
        (lambda m, emb_name=None, **k: FGM(m, 0.7, emb_name=emb_name, **k), {"steps": [0.7]}),
        (
            lambda m, emb_name=None, **k: PGD(m, 0.5, alpha=0.3, steps=3, emb_name=emb_name, **k),
            {"steps": [0.3] * 3, "radius": 0.5},
        ),
    ],
    ids=["fgm", "pgd"],
)
each_granularity = pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])


def batch(*shape, classes=3, vocab=VOCAB, seed=0):
    """Random ids of a shape, and a label for each example."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, shape, generator=g), torch.randint(0, classes, shape[:1], generator=g)


def classifier(**kwargs):
    """A Classifier without dropout, in double precision."""
    return Classifier(**{"dropout": 0.0, **kwargs}).double()


def bert(seed=0, **config):
    """A small BERT without dropout, in double precision."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    return BertForSequenceClassification(bert_config(0.0, **config)).double()


def checkpointed(model, *, use_reentrant):
    """Turn gradient checkpointing of a transformers model on, by the name that its version has for it."""
    new = getattr(model, "activation_checkpointing_enable", None)
    if new is not None:
        new(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
    elif "gradient_checkpointing_kwargs" in inspect.signature(model.gradient_checkpointing_enable).parameters:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    else:
        pytest.skip("transformers lets one choose how it checkpoints from 4.35 on")


def loss_on(ids, labels):
    """The cross entropy of a model that maps ids to logits."""
    return lambda model: cross_entropy(model(ids), labels)


#: tokens that repeat, in an example and across examples, and padding
IDS, LABELS = batch(4, 7)
IDS[0] = IDS[1, 1] = IDS[2, 2] = 9
IDS[:2, 5:] = 0
LOSS = loss_on(IDS, LABELS)


def bert_loss(model, **inputs):
    inputs = inputs or {"input_ids": IDS}
    return model(**inputs, attention_mask=(IDS != 0).long(), labels=LABELS).loss


def bert_from(model, embedded):
    return bert_loss(model, inputs_embeds=embedded)


def classifier_from(labels):
    """The loss of a Classifier, given its embedded inputs; its dropout is 0."""
    return lambda model, embedded: cross_entropy(model.head(model.rnn(embedded)[0].mean(1)), labels)


#: a model, its loss on the batch above, and that loss given the embedded inputs
MODELS = {"classifier": (classifier, LOSS, classifier_from(LABELS)), "bert": (bert, bert_loss, bert_from)}
each_model = pytest.mark.parametrize(("make", "loss_of"), [each[:2] for each in MODELS.values()], ids=MODELS)


def step(attack, model, loss_of):
    """The gradients after a step of the attack, run by ``step``, which leaves all else as it was."""
    model.zero_grad()
    before = snapshot(model)
    clean = loss_of(model).detach()
    loss = attack.step(lambda: loss_of(model))
    assert attack.replace or torch.allclose(loss, clean)
    assert_untouched(model, before)
    return gradients(model)


def gradients(model):
    return {
        name: None if p.grad is None else p.grad.detach().to_dense().clone() for name, p in model.named_parameters()
    }


def add(first, second, weight=1.0):
    """``first + weight * second``, name by name; a parameter without gradient adds nothing."""
    out = {}
    for name in first:
        terms = [g for g in (first[name], None if second[name] is None else weight * second[name]) if g is not None]
        out[name] = sum(terms) if terms else None
    return out


def assert_same(found, expected, rtol=1e-10):
    """Equal, name by name, to ``rtol`` of the largest gradient of the model."""
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    assert largest > 1e-6
    for name, g in expected.items():
        if g is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(
                found[name], g, rtol=rtol, atol=rtol * largest, msg=lambda m, n=name: f"{n}: {m}"
            )


def differ(found, other):
    """The largest relative difference, to show that a test could have failed."""
    return max(float((found[n] - g).norm() / (1e-30 + g.norm())) for n, g in other.items() if g is not None)


# Geometry by Python's numbers.


def length(*tensors):
    """The norm of all of them together."""
    return math.hypot(*(x for each in tensors for x in each.flatten().tolist()))


def direction(g, norm):
    v = g.flatten().tolist()
    length = math.hypot(*v) if norm == "l2" else 1.0
    if not all(map(math.isfinite, v)) or length == 0:
        return torch.zeros_like(g)
    return torch.tensor([a / length if norm == "l2" else (a > 0) - (a < 0) for a in v], dtype=g.dtype).view(g.shape)


def shrink(r, radius, norm):
    v = r.flatten().tolist()
    if norm == "linf":
        return torch.tensor([min(max(a, -radius), radius) for a in v], dtype=r.dtype).view(r.shape)
    length = math.hypot(*v)
    return r if length <= radius else r * (radius / length)


def ascend(r, grad, length, radius, norm):
    """A group's perturbation after a step in a ball, if any."""
    r = r + length * direction(grad, norm)
    return r if radius is None else shrink(r, radius, norm)


# Perturbing the weights.


def on_weights(model, loss_of, names, *, steps, radius=None, norm="l2", adv_weight=1.0, replace=False, start=None):
    """
    The gradients of a step that perturbs whole weights, as the textbooks do.

    :param names: the parameters to perturb, each with its own norm.
    :param steps: the lengths of the ascent steps: ``[epsilon]`` for FGM, ``[alpha] * steps`` for PGD.
    :param radius: that of the projection, if any.
    :param start: the perturbations to start from.
    """
    model = copy.deepcopy(model)
    targets = {name: p for name, p in model.named_parameters() if name in names}
    frozen = [p for p in targets.values() if not p.requires_grad]

    def grads():
        model.zero_grad()
        loss_of(model).backward()
        return gradients(model)

    clean = None if replace else grads()
    for p in frozen:
        p.requires_grad_()
    origin = {name: p.detach().clone() for name, p in targets.items()}
    r = {name: torch.zeros_like(p) for name, p in targets.items()} if start is None else dict(start)

    def put():
        with torch.no_grad():
            for name, p in targets.items():
                p.copy_(origin[name] + r[name])

    for length in steps:
        put()
        here = grads()
        for name in targets:
            r[name] = ascend(r[name], here[name], length, radius, norm)
    put()
    for p in frozen:
        p.requires_grad_(False)
    adversarial = grads()
    return add(dict.fromkeys(adversarial) if replace else clean, adversarial, adv_weight)


# Perturbing the inputs.


def ascend_inputs(d, grad, ids, granularity, padding_idx, *step):
    """What is added to one lookup after a step; by `vocab`, all places of a token move together."""
    real = ids != (-1 if padding_idx is None else padding_idx)
    d, grad = d.detach().clone(), grad * real.unsqueeze(-1)
    if granularity == "vocab":
        places = [ids == token for token in sorted({*ids[real].tolist()})]
        rows, slopes = torch.stack([d[here][0] for here in places]), torch.stack([grad[here].sum(0) for here in places])
        for here, row in zip(places, ascend(rows, slopes, *step), strict=True):
            d[here] = row
        return d
    for part in itertools.product(*map(range, ids.shape if granularity == "token" else ids.shape[:1])):
        d[part] = ascend(d[part], grad[part], *step)
    return d


def on_positions(
    model,
    ids,
    loss_from,
    embedding,
    *,
    per_token,
    steps,
    radius=None,
    norm="l2",
    adv_weight=1.0,
    replace=False,
    start=None,
):
    """
    The gradients of a step that perturbs embedded inputs, with loops over examples and positions.

    :param ids: one tensor of ids a lookup, or a list of them.
    :param loss_from: the loss, given the model and the embedded inputs, one per lookup.
    :param embedding: the embedding of a model.
    :param start: the perturbations to start from, one per lookup.
    """
    model = copy.deepcopy(model)
    ids = [ids] if isinstance(ids, torch.Tensor) else ids

    def inputs(r):
        return [embedding(model)(i) + d for i, d in zip(ids, r, strict=True)]

    r = [torch.zeros_like(e) for e in inputs([0.0] * len(ids))] if start is None else list(start)
    clean = on_inputs(model, lambda: loss_from(model, *inputs([torch.zeros_like(d) for d in r])))
    for length in steps:
        r = [d.detach().requires_grad_() for d in r]
        grads = torch.autograd.grad(loss_from(model, *inputs(r)), r)
        step = ("token" if per_token else "sequence", embedding(model).padding_idx, length, radius, norm)
        r = [ascend_inputs(d, g, i, *step) for d, g, i in zip(r, grads, ids, strict=True)]
    adversarial = on_inputs(model, lambda: loss_from(model, *inputs(r)))
    return add(dict.fromkeys(adversarial) if replace else clean, adversarial, adv_weight)


def on_inputs(model, loss):
    model.zero_grad()
    loss().backward()
    return gradients(model)


def words(model):
    """The word embedding of either model."""
    return model.word_embeddings if isinstance(model, Classifier) else model.get_input_embeddings()


def textbook(model, granularity, loss_of, ids, loss_from, embedding=words, **reference):
    """The gradients of a step of any granularity: of the weights, or of the embedded inputs."""
    if granularity == "vocab":
        names = [name for name, p in model.named_parameters() if p is embedding(model).weight]
        return on_weights(model, loss_of, names, **reference)
    return on_positions(model, ids, loss_from, embedding, per_token=granularity == "token", **reference)


@contextmanager
def additions(embedding, ids):
    """Lists what is added to each lookup of these ids, by the hooks that are on by now."""
    seen = []
    with embedding.register_forward_hook(
        lambda _, args, output: seen.append((output - embedding.weight[ids]).detach())
    ):
        yield seen


# Noise, and the mean loss along an ascent from it.


def same_noise(attack, seed=7):
    """Let an attack draw from a seed; return a generator that draws the same."""
    attack.stream.generator = torch.Generator().manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def noise_on(ids, width, size, generator, padding_idx=0):
    """Uniform noise on real tokens, times size / sqrt(n H), with the tokens n of an example counted by hand."""
    noise = torch.empty(*ids.shape, width, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    for example, row in enumerate(ids.tolist()):
        tokens = sum(i != padding_idx for i in row)
        for place, i in enumerate(row):
            noise[example, place] *= size / math.sqrt(tokens * width) if i != padding_idx else 0.0
    return noise


def along_an_ascent(ids, parts, loss_at, ascend, *, steps, clean=False):
    """
    Adds the gradients of the mean loss of some passes to those of the parameters.

    :param ids: those of each lookup.
    :param parts: the summands of what is added to each lookup at first.
    :param loss_at: the loss, given what is added to each lookup.
    :param ascend: moves the summands of one example, given them, its gradient and its ids.
    :return: what was added in each pass.
    """
    seen = []
    if clean:
        loss_at([torch.zeros_like(first) for first, *_ in parts]).backward()
    for left in reversed(range(steps)):
        d = [sum(summands).requires_grad_() for summands in parts]
        seen.append([x.detach().clone() for x in d])
        (loss_at(d) / steps).backward()
        if left:
            for summands, x, i in zip(parts, d, ids, strict=True):
                for example in range(len(i)):
                    ascend(*(each[example] for each in summands), x.grad[example], i[example])
    return seen


def loss_with(model, ids, labels):
    """The loss of a Classifier, given a list with what is added to its embedded inputs."""
    return lambda d: classifier_from(labels)(model, model.word_embeddings(ids) + d[0])


# Moving the weights.


def on_moved_weights(model, loss_of, moves_of):
    """
    The gradients at the weights, and those where they are moved.

    :param moves_of: by how much, by name, given the parameters and their gradients, by name.
    """
    model = copy.deepcopy(model)
    model.zero_grad()
    loss_of(model).backward()
    clean = gradients(model)
    moves = moves_of(dict(model.named_parameters()), clean)
    with torch.no_grad():
        for name, move in moves.items():
            model.get_parameter(name).add_(move)
    model.zero_grad()
    loss_of(model).backward()
    return clean, gradients(model)


class Siamese(nn.Module):
    """Two inputs through one embedding."""

    def __init__(self, **embedding):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(VOCAB, 6, **embedding)
        self.layer = nn.Linear(6, 5)
        self.double()

    def forward(self, left, right):
        return self.compare(self.emb(left), self.emb(right))

    def at(self, left, right):
        """The loss, given what is added to each of the lookups."""
        return lambda d: self.compare(self.emb(left) + d[0], self.emb(right) + d[1])

    def compare(self, left, right):
        left, right = (torch.tanh(self.layer(e)).mean(-2) for e in (left, right))
        return ((left - right) ** 2).sum(-1).mean()


class Two(nn.Module):
    """Two embeddings that are looked up by different ids, one of them with much longer rows."""

    def __init__(self, padding_idx=None):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.shapes = nn.Embedding(VOCAB, 8, padding_idx), nn.Embedding(12, 4)
        self.head = nn.Linear(12, CLASSES)
        with torch.no_grad():
            self.shapes.weight *= 20

    def forward(self, ids):
        return self.upper(self.words(ids), self.shapes(ids % 12))

    def upper(self, words, shapes):
        return self.head(torch.tanh(torch.cat([words, shapes], -1)).mean(1))

    def loss_at(self, words, shapes):
        return cross_entropy(self.upper(words, shapes), LABELS)
