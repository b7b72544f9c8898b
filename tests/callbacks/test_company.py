"""Callbacks with one another, with wrapped models and with ordinary habits of fastNLP's users."""

from __future__ import annotations

import pickle

import pytest
import torch
from fastNLP import Callback, logger
from support import TORCH, Bert, Classifier, build, collate, compiles, distance, loader, samples, train, weights
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from fastnlp_adv import (
    ATTACallback,
    FGMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    RDropMixin,
    RobustEvaluateCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)


class Counts(Classifier):
    """Counts the rows of each forward of its layers."""

    def __init__(self, **kwargs):
        super().__init__(**{"dropout": 0.3, **kwargs})
        self.rows = []
        self.head.register_forward_pre_hook(lambda module, args: self.rows.append(len(args[0])))


class Own(RDropMixin, Counts):
    """R-Drop of its own, with settings that the callback is to replace."""

    rdrop_kl_weight = 7.0
    rdrop_reduction = "sum"


class OwnForward(RDropMixin, Counts):
    """Returns its loss from ``forward``."""

    rdrop_kl_weight = 7.0

    def forward(self, input_ids, labels):
        pred = super().forward(input_ids)
        return {"loss": cross_entropy(pred, labels), "pred": pred}

    def train_step(self, input_ids, labels):
        return self(input_ids, labels)


class PlainForward(Counts):
    """The same without R-Drop of its own."""

    def forward(self, input_ids, labels):
        pred = Classifier.forward(self, input_ids)
        return {"loss": cross_entropy(pred, labels), "pred": pred}

    def train_step(self, input_ids, labels):
        return self(input_ids, labels)


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def train_step(self, input_ids, labels):
        return self.inner.train_step(input_ids, labels)

    def evaluate_step(self, input_ids, labels):
        return self.inner.evaluate_step(input_ids, labels)


def peft_of(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=["head"], r=2))


# 2. R-Drop runs once, with the callback's settings, wherever the model hides.

WRAPPED = {
    "bare": (lambda m: m, {}, Own, Counts),
    "train_fn": (lambda m: m, {"train_fn": "forward"}, OwnForward, PlainForward),
    "data parallel": (nn.DataParallel, {}, OwnForward, PlainForward),
    "wrapper": (Wrapper, {}, Own, Counts),
    **({"compiled": (lambda m: torch.compile(m, backend="eager"), {}, Own, Counts)} if TORCH >= (2, 1) else {}),
    "peft": (peft_of, {}, Own, Counts),
}


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
@pytest.mark.parametrize("name", WRAPPED)
def test_rdrop_callback_on_a_mixin_model_runs_once_with_its_own_settings(name, mode):
    wrap, kwargs, own, plain = WRAPPED[name]
    models = [own(), plain()]
    for model in models:
        train(wrap(model), [RDropCallback(0.5, mode=mode)], n_batches=6, **kwargs)
    assert models[0].rows == models[1].rows == ([8] * 6 if mode == "concat" else [4] * 12)
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("name", WRAPPED)
def test_a_callback_that_is_not_due_keeps_a_mixin_model_from_its_own_rdrop(name):
    wrap, kwargs, own, _ = WRAPPED[name]
    model = own()
    train(wrap(model), [RDropCallback(start=3)], n_batches=6, **kwargs)
    assert model.rows == [4] * 3 + [8] * 3


# 3. Extra forwards are bare.


@pytest.mark.parametrize("callback, extra", [(VATCallback, 2), (SMARTCallback, 2), (R3FCallback, 1)])
@pytest.mark.parametrize("mode", ["concat", "two_pass", None])
def test_extra_forwards_run_a_mixin_model_once(callback, extra, mode):
    model = Own()
    train(model, [callback(), *([RDropCallback(mode=mode)] if mode else [])], n_batches=6)
    first = [8] if mode == "concat" else [4, 4]
    assert model.rows == (first + [4] * extra) * 6


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
def test_robust_evaluation_runs_the_step_of_a_mixin_model_once(mode):
    class Model(Own):
        rdrop_mode = mode

    model, steps = Model(), 2
    callback = RobustEvaluateCallback(loader(), steps=steps, restarts=1, num_eval_sanity_batch=1)
    build(model, [callback])
    assert model.rows == [4] * (1 + steps + 1 + 1)  # clean, the search, and where evaluate_step is asked


# 5. Only our names are ours.


class ItsOwnNames(Classifier):
    def train_step(self, input_ids, labels):
        out = super().train_step(input_ids, labels)
        return {**out, "kl": out["pred"] * 2, "vat": out["pred"], "gradient_penalty": "mine", "pred2": "mine"}


def test_what_a_model_returns_under_our_names_is_its_own():
    seen = []

    class Look(Callback):
        def on_before_backward(self, trainer, outputs):
            seen.append(outputs)

    callbacks = [FGMCallback(log_every=1), RDropCallback(), VATCallback(), Look()]
    trainer = train(ItsOwnNames(dropout=0.3), callbacks, n_batches=6)
    assert seen[-1]["pred2"] == "mine" and seen[-1]["kl"].shape == seen[-1]["vat"].shape == (4, 3)
    state = trainer.state["adv"]
    assert {"kl", "vat"} <= state.keys() and "gradient_penalty" not in state
    assert all(
        torch.as_tensor(value).shape == () and not getattr(value, "requires_grad", False) for value in state.values()
    )
    alone = train(ItsOwnNames(), [FGMCallback(log_every=1)], n_batches=6)
    assert "kl" not in alone.state["adv"]


def test_every_term_is_in_the_state():
    callbacks = [RDropCallback(), SMARTCallback(bregman_weight=1.0), R3FCallback(), GradientPenaltyCallback()]
    trainer = train(Classifier(dropout=0.3), callbacks, n_batches=6)
    assert {"kl", "smart", "bregman", "r3f", "gradient_penalty"} <= trainer.state["adv"].keys()
    trainer = train(Own(), [FGMCallback()], n_batches=6)
    assert trainer.state["adv"]["kl"] > 0  # of a model with R-Drop of its own


# 6. Memory outlives a run.


MEMORIES = {
    "ATTA": lambda: ATTACallback(),
    "TAVAT": lambda: TAVATCallback(),
    "SMART": lambda: SMARTCallback(bregman_weight=1.0),
    "FreeLB": lambda: FreeLBCallback(),
}


def indexed():
    return loader(shuffle=False)


@pytest.mark.parametrize("name", MEMORIES)
def test_a_second_run_goes_on_with_what_the_first_remembers(name):
    whole, parts = Classifier(), Classifier()
    train(whole, [MEMORIES[name]()], train_dataloader=indexed(), n_epochs=2, n_batches=-1)
    trainer = build(parts, [MEMORIES[name]()], train_dataloader=indexed(), n_epochs=1, n_batches=-1)
    torch.manual_seed(1)
    trainer.run()
    trainer.n_epochs, trainer.n_batches = 2, -1
    trainer.run()
    assert torch.equal(weights(whole), weights(parts))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_checkpoint_after_the_run_holds_what_it_remembers(name, tmp_path):
    whole, parts, resumed = Classifier(), Classifier(), Classifier()
    train(whole, [MEMORIES[name]()], train_dataloader=indexed(), n_epochs=2, n_batches=-1)
    trainer = train(parts, [MEMORIES[name]()], train_dataloader=indexed(), n_epochs=1, n_batches=-1)
    trainer.save_checkpoint(tmp_path)
    rng = torch.get_rng_state()
    other = build(resumed, [MEMORIES[name]()], train_dataloader=indexed(), n_epochs=2, n_batches=-1)
    torch.set_rng_state(rng)
    other.run(resume_from=str(tmp_path))
    assert distance(resumed, whole) < 1e-6


def test_another_trainer_begins_with_an_empty_memory():
    callback = ATTACallback()
    train(Classifier(), [callback], train_dataloader=indexed(), n_batches=6)
    again = train(Classifier(), [callback], train_dataloader=indexed(), n_batches=6)
    alone = train(Classifier(), [ATTACallback()], train_dataloader=indexed(), n_batches=6)
    assert torch.equal(weights(again.driver.model), weights(alone.driver.model))


# 7. Arguments are live.


class Assign(Callback):
    def __init__(self, callback, batch, **values):
        super().__init__()
        self.callback, self.batch, self.values = callback, batch, values

    def on_train_batch_end(self, trainer):
        if trainer.global_forward_batches == self.batch:
            for name, value in self.values.items():
                setattr(self.callback, name, value)


class Norms(Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer):
        self.seen.append(float(trainer.state["adv"]["perturbation_norm"]))


def test_an_assigned_epsilon_holds_from_the_next_batch_on():
    callback, norms = FGMCallback(1.0), Norms()
    train(Classifier(), [callback, norms, Assign(callback, 3, epsilon=0.25)], n_batches=6)
    assert norms.seen == pytest.approx([1.0] * 3 + [0.25] * 3, rel=1e-5)


@pytest.mark.parametrize(
    "callback, values",
    [
        (FGMCallback, {"granularity": "sequence", "epsilon": 0.3}),
        (FGMCallback, {"replace": True, "inner_autocast": torch.bfloat16}),
        (PGDCallback, {"steps": 1, "emb_name": "word"}),
        (RDropCallback, {"kl_weight": 0.1, "mode": "two_pass"}),
        (VATCallback, {"weight": 0.0, "dropout_mask": "same"}),
        (TAVATCallback, {"emb_name": "word", "alpha": 0.5}),
    ],
)
def test_assigned_arguments_train_as_those_of_the_constructor(callback, values):
    """From the first batch on, which is when an assignment before the training takes effect."""
    models = [Classifier(dropout=0.3), Classifier(dropout=0.3)]
    late = callback()
    trainer = build(models[0], [late, Early(late, values)])
    torch.manual_seed(1)
    trainer.run()
    train(models[1], [callback(**values)])
    assert torch.equal(weights(models[0]), weights(models[1]))


class Early(Callback):
    """Assigns in the first hook of the training, when the methods have been built."""

    def __init__(self, callback, values):
        super().__init__()
        self.callback, self.values = callback, values

    def on_train_batch_begin(self, trainer, batch, indices):
        for name, value in self.values.items() if trainer.global_forward_batches == 0 else ():
            setattr(self.callback, name, value)


def test_an_assigned_argument_is_checked_and_a_bad_one_changes_nothing():
    callback = PGDCallback()
    with pytest.raises(ValueError, match="Expected `epsilon` to be a finite, non-negative number, but got -1"):
        callback.epsilon = -1
    with pytest.raises(ValueError, match="Expected `inner_autocast`"):
        callback.inner_autocast, callback.steps = torch.bfloat16, 1
    assert (callback.epsilon, callback.steps) == (1.0, 3)
    with pytest.raises(ValueError, match="Expected `every`"):
        callback.every = 0


# 9. Ordinary habits.


@pytest.mark.parametrize("start, first", [(0.07, 7), (0.5, 50), (0.29, 29), (0.001, 1), (7.5, 8)])
def test_a_fraction_begins_where_it_says(start, first):
    acted = []

    class Look(Callback):
        def on_train_batch_end(self, trainer):
            acted.append("adv_loss" in trainer.state["adv"])

    data = samples(400)
    train(Classifier(), [FGMCallback(start=start), Look()], data=data, n_batches=-1, n_epochs=1)
    assert len(acted) == 100 and acted.index(True) == first


def test_a_start_beyond_the_end_warns_once(said):
    train(Classifier(), [FGMCallback(start=1000)], n_batches=6)
    assert sum("will never act" in each.getMessage() for each in said.records) == 1


@pytest.fixture
def said(caplog):
    """What fastNLP's logger is given, whatever the width of the screen."""
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


class Raises(Callback):
    def __init__(self, hook):
        super().__init__()
        self.armed = True

    def on_train_end(self, trainer):
        if self.armed:
            raise ArithmeticError("mine")


@pytest.mark.parametrize("first", [True, False])
def test_another_callbacks_exception_at_the_end_leaves_no_step_behind(first):
    bad, model = Raises("end"), Classifier()
    trainer = build(model, [bad, FGMCallback()] if first else [FGMCallback(), bad], n_epochs=1, n_batches=-1)
    step = trainer.train_batch_loop.batch_step_fn
    with pytest.raises(ArithmeticError):
        trainer.run()
    assert trainer.train_batch_loop.batch_step_fn is step
    assert not model.word_embeddings._forward_hooks
    bad.armed, trainer.n_epochs = False, 2
    trainer.run()
    assert trainer.train_batch_loop.batch_step_fn is step


def test_one_callback_in_two_running_trainers_is_refused_and_the_outer_one_goes_on():
    callback, messages = FGMCallback(), []

    class Nested(Callback):
        def on_train_batch_end(self, trainer):
            if trainer.global_forward_batches == 2:
                inner = build(Classifier(), [callback], n_epochs=1)
                with pytest.raises(ValueError) as caught:
                    inner.run()
                messages.append(str(caught.value))

    ours, theirs = Classifier(), Classifier()
    train(ours, [callback, Nested()])
    train(theirs, [FGMCallback()])
    assert "one Trainer at a time" in messages[0] and "a callback of its own" in messages[0]
    assert torch.equal(weights(ours), weights(theirs))


def test_atta_refuses_overfit_batches_which_come_without_indices():
    with pytest.raises(ValueError, match=r"without `overfit_batches`.*but got 2. Give the dataloader"):
        build(Classifier(), [ATTACallback()], overfit_batches=2)


# 12. and 13. Batches without tokens, and batches that go elsewhere.


class MultiTask(Classifier):
    """Some batches have words, others numbers that never reach the embedding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = nn.Linear(3, 8)

    def train_step(self, labels, input_ids=None, numbers=None):
        hidden = self.numbers(numbers) if input_ids is None else self.rnn(self.word_embeddings(input_ids))[0].mean(1)
        pred = self.head(self.dropout(hidden))
        return {"loss": cross_entropy(pred, labels), "pred": pred}


def tasks(order):
    """Batches in an order of ``w`` for words and ``n`` for numbers."""
    words = [collate(samples(4, seed=i)) for i in range(len(order))]
    g = torch.Generator().manual_seed(0)
    for kind, batch in zip(order, words):
        batch.pop("attention_mask")
        if kind == "n":
            batch.pop("input_ids")
            batch["numbers"] = torch.randn(4, 3, generator=g)
    return words


class Batches(DataLoader):
    """Gives batches as they are, and tells the indices of their examples, as fastNLP's dataloader does."""

    def __init__(self, batches):
        super().__init__(batches, batch_size=None)
        self.given = -1

    def __iter__(self):
        for given, batch in enumerate(self.dataset):
            self.given = given
            yield batch

    def get_batch_indices(self):
        return list(range(len(self.dataset[self.given]["labels"])))


def batches_of(order):
    return Batches(tasks(order))


CALLBACKS = [
    FGMCallback,
    lambda: FGMCallback(replace=True, granularity="token"),
    lambda: FGMCallback(emb_name="head"),
    PGDCallback,
    lambda: PGDCallback(random_init=True),
    FreeLBCallback,
    TAVATCallback,
    VATCallback,
    SMARTCallback,
    R3FCallback,
    GradientPenaltyCallback,
]


@pytest.mark.parametrize("make", [c for c in CALLBACKS if c is not CALLBACKS[2]])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_batch_that_goes_elsewhere_is_a_plain_step_and_counted(make, accumulation):
    """After one batch of words, those of numbers train the weights as plain training does."""
    order = "w" * accumulation + "n" * 4
    ours, plain, callback = MultiTask(dropout=0.0), MultiTask(dropout=0.0), make()
    first = {}

    class Copy(Callback):
        def on_train_batch_end(self, trainer):
            if trainer.global_forward_batches == accumulation:
                first.update({k: v.clone() for k, v in ours.state_dict().items()})

    kwargs = {"n_epochs": 1, "n_batches": -1, "accumulation_steps": accumulation}
    trainer = build(ours, [callback, Copy()], train_dataloader=batches_of(order), **kwargs)
    trainer.run()
    plain.load_state_dict(first)
    build(plain, [], train_dataloader=Batches(tasks(order)[accumulation:]), **kwargs).run()
    assert distance(ours, plain) < 1e-6
    assert int(trainer.state["adv"]["skipped"]) >= 4


@pytest.mark.parametrize("make", [c for c in CALLBACKS if c is not CALLBACKS[2]])
def test_an_embedding_that_was_never_looked_up_is_probably_the_wrong_one(make):
    trainer = build(MultiTask(), [make()], train_dataloader=batches_of("nn"), n_epochs=1, n_batches=-1)
    with pytest.raises(RuntimeError, match=r"to look up embedding `word_embeddings.weight`.*`emb_name`"):
        trainer.run()


class TwoEmbeddings(MultiTask):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.more_embeddings = nn.Embedding(50, 8)

    def train_step(self, labels, input_ids=None, numbers=None):
        embedding = self.more_embeddings if input_ids[0, 0] % 2 else self.word_embeddings
        pred = self.head(self.rnn(embedding(input_ids))[0].mean(1))
        return {"loss": cross_entropy(pred, labels), "pred": pred}


@pytest.mark.parametrize("callback", [FGMCallback, PGDCallback, FreeLBCallback, TAVATCallback, VATCallback])
def test_one_of_several_embeddings_may_be_left_out(callback):
    data = tasks("w" * 12)
    for i, batch in enumerate(data):
        batch["input_ids"][:, 0] = 1 + i % 2
    both = dict(data[0])
    model = TwoEmbeddings()
    trainer = build(
        model, [callback(emb_name="_embeddings")], train_dataloader=Batches([both]), n_epochs=1, n_batches=-1
    )
    if callback is not VATCallback:  # which compares predictions, and needs a lookup of any
        with pytest.raises(RuntimeError, match="to look up embedding"):
            trainer.run()
    method = callback(emb_name="_embeddings")

    class Seen(Callback):
        def on_train_begin(self, trainer):
            for tap in method.method_.taps:
                tap.seen = True

    trainer = build(model, [method, Seen()], train_dataloader=Batches(data), n_epochs=1, n_batches=-1)
    before = weights(model).clone()
    trainer.run()
    assert torch.isfinite(weights(model)).all() and not torch.equal(before, weights(model))


class Empty(Classifier):
    """Takes texts of no tokens."""

    def train_step(self, input_ids, labels):
        hidden = torch.tanh(self.word_embeddings(input_ids)).sum(1)
        pred = self.head(hidden)
        return {"loss": cross_entropy(pred, labels, reduction="sum") / max(len(labels), 1), "pred": pred}


@pytest.mark.parametrize("shape", [(4, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("make", [*CALLBACKS, lambda: ATTACallback()], ids=range(len(CALLBACKS) + 1))
def test_a_lookup_of_no_tokens_trains_on(make, shape):
    data = [
        {"input_ids": torch.randint(1, 50, size), "labels": torch.randint(0, 3, size[:1])}
        for size in [(4, 5), shape, (4, 5)]
    ]

    model = Empty()
    train(model, [make()], train_dataloader=Batches(data), n_epochs=1, n_batches=-1)
    assert torch.isfinite(weights(model)).all()


# 14. Each pass gets a batch of its own.


class Pops(Classifier):
    def train_step(self, batch):
        return super().train_step(batch.pop("input_ids"), batch.pop("labels"))


@pytest.mark.parametrize("make", [*CALLBACKS, RDropCallback, lambda: RDropCallback(mode="two_pass")])
def test_a_step_may_take_fields_out_of_the_batch(make):
    ours, theirs = Pops(dropout=0.3), Classifier(dropout=0.3)
    for model in (ours, theirs):
        train(model, [make()], n_batches=6, model_wo_auto_param_call=model is ours)
    assert torch.equal(weights(ours), weights(theirs))


# 15. Compiled models.


class Compiled(Classifier):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._net = nn.Sequential(self.word_embeddings, nn.Linear(8, 8), nn.Tanh())
        self.net = torch.compile(self._net, backend="eager")

    def forward(self, input_ids):
        return self.head(self.net(input_ids).mean(1))


class Saves(Callback):
    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, trainer):
        if trainer.global_forward_batches == 4:
            trainer.save_model(self.folder, only_state_dict=False)


@compiles
@pytest.mark.parametrize("start", [0, 3])
def test_a_compiled_part_can_be_attacked_later_and_saved_meanwhile(start, tmp_path):
    torch.compiler.reset()
    ours = Compiled()
    ours(samples(2)[0]["input_ids"].unsqueeze(0))  # has run before the training
    trainer = train(ours, [FGMCallback(start=start), Saves(tmp_path)], n_batches=6)
    assert float(trainer.state["adv"]["perturbation_norm"]) == pytest.approx(1.0, rel=1e-5)


def test_a_model_that_was_pickled_in_training_has_hooks_that_do_nothing():
    from fastnlp_adv import FGM

    model = Bert(dropout=0.0)
    fgm = FGM(model)
    copied = pickle.loads(pickle.dumps(model))
    fgm.close()
    batch = collate(samples(4))
    assert torch.equal(model.train_step(**batch)["pred"], copied.train_step(**batch)["pred"])


# It says what it does.


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
