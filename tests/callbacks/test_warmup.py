"""``warmup``: how far each batch of a real training is perturbed, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from rows import Row
from support import Assign, Classifier, callback_of, train

from fastnlp_adv import FGMCallback, PGDCallback
from fastnlp_adv.callbacks import METHODS


def norms(callback, n_batches=6, more=(), **kwargs):
    """The norm of the perturbation in each batch; 0 where there was none."""
    seen = []
    note = callback_of(
        on_train_batch_begin=lambda trainer, *_: trainer.state.get("adv", {}).pop("perturbation_norm", None),
        on_train_batch_end=lambda trainer: seen.append(float(trainer.state["adv"].get("perturbation_norm", 0.0))),
    )
    train(Classifier(), [callback, note, *more], n_batches=n_batches, **kwargs)
    return seen


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup": 4, "epsilon": 0.2}, [0.05, 0.1, 0.15, 0.2, 0.2, 0.2]),
        ({"warmup": 1.0}, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
        ({"start": 2, "warmup": 1}, [0, 0, 1 / 4, 2 / 4, 3 / 4, 1]),  # whole at the end, though it sets in late
        ({"warmup": 2.5}, [0.4, 0.8, 1, 1, 1, 1]),
        ({"warmup": 0.5, "start": 0.3}, [0, 0, 1 / 3, 2 / 3, 1, 1]),  # 0.3 of 6 steps is over with the second
        ({"warmup": 3, "start": 1, "every": 2}, [0, 1 / 3, 0, 1, 0, 1]),
        ({"warmup": 3, "replace": True}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
    ],
    ids=str,
)
def test_epsilon_of_each_batch(arguments, expected):
    assert norms(FGMCallback(**arguments)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("arguments", [{"warmup": 3, "start": 1}, {"warmup": 0.5, "start": 0.1}], ids=str)
def test_it_counts_optimizer_steps(arguments):
    found = norms(FGMCallback(**arguments), n_batches=12, accumulation_steps=2)
    expected = [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["NEFTune", "FreeLB", "TAVAT"])
def test_noise_grows(method):
    """Which is the same from run to run; TA-VAT's also comes from rows that training writes, but for the first."""
    arguments = {} if method == "NEFTune" else {"steps": 1}
    grown, whole = norms(Row(method, arguments).callback(warmup=4)), norms(Row(method, arguments).callback())
    ratios = [a / b for a, b in zip(grown, whole, strict=True)]
    assert ratios == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-5)


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.kind == "attack"])
def test_every_attack_begins_with_next_to_nothing(method):
    grown, whole = (norms(Row(method).callback(warmup=warmup), n_batches=2) for warmup in (10**7, 0))
    assert max(whole) > 0
    assert max(grown) < 1e-6 * max(whole)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"epsilon": 2.0}, [0.25, 0.5, 1.5, 2, 2, 2]),
        ({"warmup": 0}, [0.25, 0.5, 1, 1, 1, 1]),
        ({"warmup": 6}, [0.25, 0.5, 3 / 6, 4 / 6, 5 / 6, 1]),
        ({"start": 2}, [0.25, 0.5, 0.25, 0.5, 0.75, 1]),
    ],
    ids=str,
)
def test_arguments_are_live(values, expected):
    callback = FGMCallback(warmup=4)
    assert norms(callback, more=[Assign(callback, 2, **values)]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("warmup, steps", [(4, 4), (0.5, 3), (0.25, 1.5), (1, 6)])
def test_the_line_says_how_long_it_grows(warmup, steps, said):
    train(Classifier(), [FGMCallback(warmup=warmup)], n_batches=6)
    (line,) = [each for each in said.messages if each.startswith("FGM perturbs")]
    assert line.endswith(f"shared by the micro-batch, growing to that over {steps:g} optimizer steps")


SIZE = "Expected `epsilon` to be at most"


@pytest.mark.parametrize(
    "callback, most",
    [
        (FGMCallback(6.0), 2),
        (PGDCallback(6.0, steps=1, granularity="sequence"), 1),
        (PGDCallback(3.0, granularity="token"), 1),
        (FGMCallback(2.5, relative=True), 2),
    ],
)
def test_a_perturbation_of_more_than_two_rows_warns_at_the_start(callback, most, said):
    model = Classifier()
    row = 1 if callback.relative else model.word_embeddings.weight.norm(dim=1).mean().item()
    train(model, [callback], n_batches=6)
    (line,) = [each for each in said.messages if SIZE in each]
    assert f"at most {most} row" in line and f"got {callback.epsilon / row:.3g}: " in line
    assert "`word_embeddings.weight`" in line and "`warmup=1.0`" in line
    assert ("relative=True" in line) is not callback.relative


@pytest.mark.parametrize("arguments, reached", [({"warmup": 1000}, "0.006"), ({"warmup": 8, "start": 2}, "0.5")])
def test_a_warmup_that_is_longer_than_the_training_warns(arguments, reached, said):
    train(Classifier(), [FGMCallback(**arguments)], n_batches=6)
    (line,) = [each for each in said.messages if "Expected `warmup` to end within" in each]
    assert f"will only reach {reached} of its perturbation" in line and "at most 1.0" in line
