"""Robust evaluation against its definition, on embedded inputs, and what it promises."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from support import Bert, Classifier, assert_untouched, collate, samples, snapshot
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv.robustness import robust_evaluate

SEED = 3


def learnable(n):
    """Sentences whose label their first token tells."""
    data = samples(n)
    for sample in data:
        sample["labels"] = sample["input_ids"][0] % 3
    return [collate(data[i : i + 40]) for i in range(0, n, 40)]


DATA = learnable(200)


def trained(model, logits, steps=60, lr=0.02):
    """A model that has learned the data, in double precision and in train mode."""
    model = model.double()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        batch = DATA[step % len(DATA)]
        optimizer.zero_grad()
        cross_entropy(logits(model, batch), batch["labels"]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def bert_logits(model, batch):
    return model.back_bone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def gru_logits(model, batch):
    return model(batch["input_ids"])


@pytest.fixture(scope="module")
def bert():
    return trained(Bert(0.0), bert_logits, lr=0.01)


@pytest.fixture(scope="module")
def gru():
    return trained(Classifier(0.0), gru_logits)


def evaluate_gru(model, data=DATA[:1], **kwargs):
    return robust_evaluate(model, data, **{"step": partial(gru_logits, model), "steps": 4, "restarts": 2, **kwargs})


def length(x):
    return math.hypot(*x.flatten().tolist())


def reference(model, data, epsilons, steps, restarts):
    """The definition, example by example, on a BERT that is given `inputs_embeds`: for each epsilon, the mean highest
    loss and the share of examples that were right at all points."""
    table = model.back_bone.get_input_embeddings().weight.detach()
    unit = sum(map(length, table)) / len(table)
    generator = torch.Generator().manual_seed(SEED)
    losses, right = {e: [] for e in (0, *epsilons)}, {e: [] for e in (0, *epsilons)}
    for batch in data:
        ids, labels = batch["input_ids"], batch["labels"]
        real = (ids != 0).double().unsqueeze(-1)
        starts = []
        for _ in range(restarts):
            normal = torch.empty(*ids.shape, 16, dtype=torch.float64).normal_(generator=generator) * real
            radius = torch.empty(len(ids), 1, 1, dtype=torch.float64).uniform_(0, 1, generator=generator)
            starts.append(torch.stack([r * x / length(x) for x, r in zip(normal, radius, strict=True)]))

        def at(r, batch=batch, ids=ids):
            embedded = table[ids] + r
            return model.back_bone(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits

        highest = [-math.inf] * len(ids)
        always = [True] * len(ids)

        def look(logits, labels=labels, highest=highest, always=always):
            for i, row in enumerate(logits.tolist()):
                loss = math.log(sum(math.exp(z) for z in row)) - row[labels[i]]
                highest[i] = max(highest[i], loss)
                always[i] = always[i] and row.index(max(row)) == labels[i]

        look(at(0))
        losses[0] += highest
        right[0] += always
        for epsilon in epsilons:
            for start in starts:
                r = epsilon * unit * start
                for step in range(steps + 1):
                    r = r.detach().requires_grad_()
                    logits = at(r)
                    look(logits)
                    if step < steps:
                        (g,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), r)
                        moved = []
                        for point, grad in zip(r.detach(), g * real, strict=True):
                            point = point + 2.5 * epsilon * unit / steps * grad / length(grad)
                            moved.append(point * min(1.0, epsilon * unit / length(point)))
                        r = torch.stack(moved)
            losses[epsilon] += highest
            right[epsilon] += always
    n = len(losses[0])
    return {e: {"loss": sum(losses[e]) / n, "accuracy": sum(right[e]) / n} for e in losses}


def test_agrees_with_an_independent_attack_on_embedded_inputs(bert):
    epsilons, steps, restarts = (1.0, 2.0), 5, 2
    found = robust_evaluate(
        bert, DATA, epsilons=epsilons, steps=steps, restarts=restarts, seed=SEED, step=partial(bert_logits, bert)
    )
    expected = reference(bert, DATA, epsilons, steps, restarts)
    assert list(found) == list(expected)
    for epsilon in expected:
        assert found[epsilon]["loss"] == pytest.approx(expected[epsilon]["loss"], rel=1e-6)
        assert abs(found[epsilon]["accuracy"] - expected[epsilon]["accuracy"]) <= 1 / 200 + 1e-12
    assert found[0.0]["accuracy"] > 0.9  # so that there was something to attack, and it was attacked
    assert found[2.0]["accuracy"] < found[1.0]["accuracy"] < found[0.0]["accuracy"] - 0.02


def test_points_stay_in_their_balls_and_off_padding(gru):
    batch, seen = DATA[0], []
    handle = gru.rnn.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    evaluate_gru(gru, epsilons=(0.5,))
    handle.remove()
    table = gru.word_embeddings.weight.detach()
    epsilon = 0.5 * float(table.norm(dim=1).mean())
    moves = [x - table[batch["input_ids"]] for x in seen]
    assert len(moves) == 1 + 2 * (4 + 1)
    for move in moves:
        assert (move[batch["input_ids"] == 0] == 0).all()
        assert max(map(length, move)) <= epsilon * (1 + 1e-9)
    assert min(map(length, moves[-1])) > 0.5 * epsilon


def test_metrics_of_the_user_see_the_worst_points(gru):
    right, losses = {}, {}

    def update(epsilon, outputs, batch):
        assert not torch.is_grad_enabled()
        right[epsilon] = float((outputs.argmax(-1) == batch["labels"]).double().mean())
        losses[epsilon] = cross_entropy(outputs, batch["labels"]).item()

    found = evaluate_gru(gru, epsilons=(0.3, 1.0), update=update)
    assert right == pytest.approx({e: each["accuracy"] for e, each in found.items()})
    assert all(losses[e] <= found[e]["loss"] + 1e-9 for e in found)  # a wrong point may have a lower loss
    assert losses[1.0] > losses[0.3] > losses[0.0]


@dataclass
class Answer:
    """What some models return."""

    logits: torch.Tensor
    hidden: list


def test_outputs_keep_their_type_and_lose_their_graph(bert):
    seen = []

    def update(epsilon, outputs, batch):
        seen.append((type(outputs), outputs.logits.numpy()))

    settings = {"epsilons": (1.0,), "steps": 1, "restarts": 1, "update": update}
    robust_evaluate(bert.back_bone, DATA[:1], **settings)
    robust_evaluate(bert, DATA[:1], step=lambda b: Answer(bert_logits(bert, b), [torch.zeros(1)]), **settings)
    assert [kind.__name__ for kind, _ in seen] == ["SequenceClassifierOutput"] * 2 + ["Answer"] * 2
    assert (seen[1][1] == seen[3][1]).all() and (seen[0][1] != seen[1][1]).any()


def test_relative_means_in_units_of_the_mean_row(gru):
    unit = float(gru.word_embeddings.weight.detach().norm(dim=1).mean())
    relative = evaluate_gru(gru, epsilons=(0.5,))[0.5]
    absolute = evaluate_gru(gru, epsilons=(0.5 * unit,), relative=False)[0.5 * unit]
    assert relative == pytest.approx(absolute, rel=1e-5)


def test_a_confident_model_gets_no_safer(gru):
    """Its predictions are the same, but the gradient of its cross entropy vanishes in single precision."""
    modest = copy.deepcopy(gru).float()
    confident = copy.deepcopy(modest)
    with torch.no_grad():
        for param in confident.head.parameters():
            param *= 50
    settings = {"epsilons": (1.0,), "steps": 10}
    plain, scaled = (evaluate_gru(model, **settings) for model in (modest, confident))
    assert plain[1.0]["accuracy"] < plain[0.0]["accuracy"] - 0.2
    assert scaled[1.0]["accuracy"] == pytest.approx(plain[1.0]["accuracy"], abs=0.05)


def test_another_loss(gru):
    def margin(outputs, batch):
        own = nn.functional.one_hot(batch["labels"], 3).bool()
        return outputs.masked_fill(own, -math.inf).amax(1) - outputs[own]

    right = {}

    def update(epsilon, outputs, batch):
        right[epsilon] = float((outputs.argmax(-1) == batch["labels"]).double().mean())

    found = evaluate_gru(gru, loss=margin, update=update, epsilons=(0.3, 1.0))
    assert [set(each) for each in found.values()] == [{"loss"}] * 3
    assert found[1.0]["loss"] > found[0.3]["loss"] > found[0.0]["loss"]
    assert right[1.0] < right[0.3] <= right[0.0]


class Stop(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


@pytest.mark.parametrize("at", [None, 1, 2, 5, 11, 12])
def test_whatever_happens_the_model_is_as_before(gru, at):
    model = copy.deepcopy(gru)
    model.train()
    model.rnn.eval()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    model.head.bias.requires_grad_(False)
    before, modes, forwards = snapshot(model), [m.training for m in model.modules()], []
    noise = torch.get_rng_state()

    def step(batch):
        forwards.append(not any(m.training for m in model.modules()))
        if len(forwards) == at:
            raise Stop
        return gru_logits(model, batch)

    if at is None:
        evaluate_gru(model, step=step, epsilons=(0.5,))
    else:
        with pytest.raises(Stop):
            evaluate_gru(model, DATA[:2], step=step, epsilons=(0.5,))
    assert all(forwards) and len(forwards) == (at or 11)
    assert_untouched(model, before)
    assert [m.training for m in model.modules()] == modes
    assert all((p.grad == 1).all() for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), noise)
    assert torch.is_grad_enabled()


def test_works_where_gradients_are_off_and_twice_alike(gru):
    first = evaluate_gru(gru)
    with torch.no_grad():
        assert evaluate_gru(gru) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` to be an integer"),
        ({"emb_name": "head"}, "parameters that are not looked up"),
        ({"labels": "target"}, "`labels` to name a field"),
        ({"data": []}, "`dataloader` to give batches"),
        ({"data": [(DATA[0]["input_ids"], DATA[0]["labels"])], "step": None}, "Give `step`"),
        ({"loss": lambda outputs, batch: outputs.sum()}, "a value for each example"),
        ({"loss": lambda outputs, batch: outputs.sum(1)[:5]}, "one row for each example"),
        ({"step": lambda batch: torch.zeros(4, 5, 3)}, "integer labels of the same shape"),
    ],
)
def test_refuses(gru, arguments, message):
    before = snapshot(gru)
    with pytest.raises(ValueError, match=message):
        evaluate_gru(gru, **arguments)
    assert_untouched(gru, before)


@pytest.mark.parametrize("relative", [True, False])
def test_results_are_a_dict_that_is_printed_with_a_title(gru, relative):
    found = evaluate_gru(gru, epsilons=(0.1, 0.4), relative=relative)
    title, names, *rows = str(found).splitlines()
    assert title.endswith("in rows (mean lengths of a word vector)" if relative else "in the units of the embedding")
    assert names.split() == ["epsilon", "loss", "accuracy"]
    for row, (epsilon, each) in zip(rows, found.items(), strict=True):
        assert row.split() == [f"{epsilon:g}", f"{each['loss']:.4g}", f"{each['accuracy']:.1%}"]
    assert found == dict(found) == pickle.loads(pickle.dumps(found))
    assert "accuracy" not in str(evaluate_gru(gru, loss=lambda out, batch: out.sum(-1)))
