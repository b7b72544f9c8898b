"""The Trainer of transformers with methods: runs, logs, precision, checkpoints and refusals."""

from __future__ import annotations

import copy
import doctest
import logging
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import by_hand
import pytest
import torch
from datasets import Dataset
from processes import run
from references import on_weights
from support import Bert, bert_config, samples, since_torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification, BertModel, BertTokenizerFast, Trainer, TrainerCallback

from fastnlp_adv import (
    ATTA,
    AWP,
    FGM,
    PGD,
    R3F,
    SAM,
    SMART,
    TAVAT,
    VAT,
    FreeLB,
    GradientPenalty,
    NEFTune,
    RDrop,
    RDropMixin,
)

trainers = pytest.importorskip("fastnlp_adv.trainers.transformers", exc_type=ImportError)  # it may be too old
AdversarialTrainer, MethodsMixin = trainers.AdversarialTrainer, trainers.MethodsMixin


def bert(dropout=0.1, **config):
    torch.manual_seed(0)
    return BertForSequenceClassification(bert_config(dropout, num_hidden_layers=1, **config))


def build(folder, methods, model=None, *, base=AdversarialTrainer, n=8, given=None, **changed):
    """A Trainer for a few steps."""
    data = [{**sample, "index": i} for i, sample in enumerate(samples(n))]
    args = by_hand.arguments(folder, **{"per_device_train_batch_size": 2, "learning_rate": 0.01, **changed})
    given = {**(given or {}), **({} if base is Trainer else {"methods": methods})}
    return base(model=bert() if model is None else model, args=args, train_dataset=data, **given)


def train(folder, methods, model=None, *, before=None, resume=None, **changed):
    """Train for a few steps; return the Trainer."""
    trainer = build(folder, methods, model, **changed)
    if before is not None:
        before(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer):
    """The values that the methods measured, step by step."""
    return [
        {name[4:]: value for name, value in entry.items() if name.startswith("adv/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


ATTACK = {"adv_loss", "grad_norm", "perturbation_norm", "skipped"}


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        ([ATTA(epsilon=0.1, alpha=0.1)], ATTACK),
        ([FreeLB(steps=2)], ATTACK),
        ([NEFTune()], ATTACK),
        ([TAVAT()], ATTACK),
        ([FGM(fraction=0.5, replace=True)], ATTACK | {"loss"}),
        ([SAM(), GradientPenalty()], ATTACK | {"loss", "gradient_penalty"}),
        ([VAT(), AWP(), R3F(), RDrop()], ATTACK | {"loss", "vat", "r3f", "kl"}),
        ([SMART(bregman_weight=1.0)], {"loss", "smart", "bregman"}),
    ],
    ids=lambda value: "-".join(type(each).__name__ for each in value),
)
def test_methods_run_and_are_logged(methods, names, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fastnlp_adv")
    trainer = train(tmp_path, methods, bert(attn_implementation="eager"))
    assert {*logged(trainer)[-1]} == names
    assert all(torch.isfinite(torch.tensor([*entry.values()])).all() for entry in logged(trainer))
    lines = [line for line in caplog.messages if " perturbs " in line]
    assert len(lines) == sum(not isinstance(each, RDrop) for each in methods)
    assert all(each.model is None for each in methods)
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_without_methods_it_is_the_trainer(tmp_path):
    ours, theirs = train(tmp_path, []), train(tmp_path, None, base=Trainer)
    assert by_hand.distance(ours.model, theirs.model) == 0
    attacked = train(tmp_path, [FGM()])
    assert by_hand.distance(attacked.model, theirs.model) > 1e-3
    assert attacked.state.log_history[0]["loss"] == theirs.state.log_history[0]["loss"]


def test_fractions_of_the_training_are_counted_in_its_steps(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fastnlp_adv")
    trainer = train(tmp_path, [FGM(epsilon=0.2, warmup=1.0)], gradient_accumulation_steps=2, n=12, num_train_epochs=2)
    assert trainer.state.max_steps == 6
    norms = [entry["perturbation_norm"] for entry in logged(trainer)]
    assert norms == pytest.approx([0.2 * step / 6 for step in range(1, 7)], rel=1e-4)
    assert not [line for line in caplog.messages if "warmup" in line]
    train(tmp_path, [FGM(epsilon=0.2, warmup="auto")], n=2)
    assert "FGM: no perturbation yet, since `warmup='auto'` begins after 5 optimizer steps" in caplog.messages
    late = train(tmp_path, [FGM(epsilon=0.2, start=0.5)], n=8)
    assert ["perturbation_norm" in entry for entry in logged(late)] == [False, False, True, True]


def test_the_examples_of_docstrings_run():
    assert doctest.testmod(trainers).failed == 0


class OwnLoss(MethodsMixin, Trainer):
    """A subclass that computes the loss without the Trainer's help, and looks at the labels that it is given."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


def own_loss(outputs, labels, num_items_in_batch=None):
    return cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("mode", ["concat", "two_pass"])
def test_losses_of_ones_own_are_the_same_training(mode, tmp_path):
    usual, own, function = (
        train(tmp_path, [FGM(epsilon=0.2), RDrop(mode=mode)], n=4, **how).model
        for how in ({}, {"base": OwnLoss}, {"given": {"compute_loss_func": own_loss}})
    )
    assert by_hand.distance(own, usual) == 0
    assert by_hand.distance(function, usual) < 1e-6


def scaled(trainer):
    """Give the Trainer a gradient scaler, as fp16 does on a GPU."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)


SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}


def precisely(folder, **changed):
    return train(folder, [PGD(epsilon=0.3, steps=2), RDrop()], bert(0.0), n=4, **SGD, **changed)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usual")
    trainer, plain = precisely(folder), train(folder, None, bert(0.0), base=Trainer, n=4, **SGD)
    assert by_hand.distance(trainer.model, plain.model) > 1e-3
    return trainer


@pytest.mark.parametrize(
    ("changed", "before", "bound"),
    [
        ({}, scaled, 1e-5),
        ({"bf16": True}, None, 0.05),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, None, 1e-6),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, None, 1e-6),
    ],
    ids=["scaler", "bf16", "checkpointing", "compile"],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@mock.patch.dict(os.environ)  # the Trainer sets variables for a compiled model
def test_precision_and_memory_do_not_change_the_training(changed, before, bound, usual, tmp_path):
    other = precisely(tmp_path, before=before, **changed)
    assert by_hand.distance(other.model, usual.model) < bound
    for name, value in logged(usual)[0].items():
        assert logged(other)[0][name] == pytest.approx(value, rel=max(bound, 1e-3), abs=1e-4), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fp16_on_a_gpu(tmp_path):
    half, full = (
        train(tmp_path / str(fp16), [PGD(epsilon=0.3), RDrop()], fp16=fp16, use_cpu=False) for fp16 in (True, False)
    )
    assert half.accelerator.scaler is not None
    assert by_hand.distance(half.model, full.model) < 0.05
    assert logged(half)[0]["grad_norm"] == pytest.approx(logged(full)[0]["grad_norm"], rel=0.05)


class Killed(TrainerCallback):
    """Ends the process in the middle of an optimizer step."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "methods",
    [
        lambda: [PGD(epsilon=0.2, random_init=True, warmup="auto"), RDrop()],
        lambda: [ATTA(epsilon=0.1, alpha=0.1)],
        lambda: [AWP(fraction=0.5), SMART(bregman_weight=1.0)],
        lambda: [NEFTune(every=2), VAT(start=0.3)],
    ],
    ids=["pgd", "atta", "smart", "vat"],
)
@since_torch(2, 6, "transformers loads checkpoints")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_run_goes_on_to_the_same_weights(methods, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 4}

    def trained(folder, **how):
        return train(tmp_path / folder, methods(), **saving, **how)

    whole = trained("whole")
    process = os.fork()
    if process == 0:  # a child shares the imports
        try:
            trained("killed", given={"callbacks": [Killed()]})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    resumed = trained("killed", resume=True)
    assert resumed.state.global_step == whole.state.global_step == 8
    assert by_hand.distance(resumed.model, whole.model) == 0
    for entry, other in zip(logged(resumed), logged(whole), strict=True):  # a method that pauses leaves its last values
        assert entry and entry.items() <= other.items()

    anew = tmp_path / "killed/checkpoint-4"
    (anew / "methods_0.pt").unlink()
    assert by_hand.distance(trained("killed", resume=str(anew)).model, whole.model) > 0


def test_a_training_that_breaks_leaves_the_model_as_it_was(tmp_path):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    methods, model = [FGM(), VAT()], bert()
    trainer = build(tmp_path, methods, model, given={"callbacks": [Breaks]})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(each.model is None for each in methods)
    assert not any(module._forward_hooks for module in model.modules()) and "compute_loss" not in vars(trainer)
    trainer.remove_callback(Breaks)
    trainer.train()
    assert len(logged(trainer)) == 4


class OwnRDrop(RDropMixin, BertForSequenceClassification):
    rdrop_in = "forward"


class InTrainStep(RDropMixin, BertForSequenceClassification):
    pass


def test_a_model_with_rdrop_of_its_own(tmp_path):
    inside = train(tmp_path, [FGM(epsilon=0.2)], OwnRDrop(bert_config(0.1)))
    assert "kl" in logged(inside)[0]
    trained = []
    for cls in (BertForSequenceClassification, OwnRDrop, InTrainStep):  # the regularizer takes its place
        torch.manual_seed(0)
        trained.append(train(tmp_path, [FGM(epsilon=0.2), RDrop(kl_weight=0.3)], cls(bert_config(0.1)), n=4).model)
    assert [by_hand.distance(own, trained[0]) for own in trained[1:]] == [0, 0]
    with pytest.raises(ValueError, match=r"`rdrop_in` of InTrainStep to be 'forward'.*RDrop\(\)"):
        train(tmp_path, [FGM(epsilon=0.2)], InTrainStep(bert_config(0.1)))


@pytest.mark.parametrize(
    ("methods", "error"),
    [
        (FGM(), r"`methods` to be a list.*got FGM"),
        ([nn.Linear(1, 1)], "attacks and regularizers, but got Linear"),
        ([FGM], "attacks and regularizers, but got the class FGM"),
        ([FGM(), PGD()], "at most one attack.*FGM and PGD"),
        ([VAT(), VAT()], "at most one attack.*VAT and VAT"),
        ([FGM(emb_name="nowhere")], "nowhere"),
        ([FGM(Bert().back_bone)], "unattached, but got one that is attached to a BertForSequenceClassification"),
    ],
    ids=["no list", "no method", "class", "two attacks", "twice", "no embedding", "attached"],
)
def test_what_cannot_work_is_refused_when_the_trainer_is_built(methods, error, tmp_path):
    with pytest.raises((TypeError, ValueError), match=error):
        build(tmp_path, methods)


def test_sharded_training_is_refused_by_name(tmp_path):
    trainer = build(tmp_path, [FGM()])
    for flag, name in (("is_fsdp_enabled", "FSDP"), ("is_distributed_loading_by_transformers", "a sharded model")):
        setattr(trainer, flag, True)
        with pytest.raises(ValueError, match=f"the whole model.*but got {name}"):
            trainers._check_trainer(trainer)
        setattr(trainer, flag, False)
    trainers._check_trainer(trainer)


def test_atta_asks_for_the_index(tmp_path):
    with pytest.raises(ValueError, match=r"a column `index` in the data set.*add_column"):
        AdversarialTrainer(bert(), by_hand.arguments(tmp_path), train_dataset=samples(4), methods=[ATTA()]).train()


def test_both_towers_of_a_sentence_transformer_are_attacked(tmp_path):
    towers = pytest.importorskip("sentence_transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    BertModel(bert_config(0.0, num_hidden_layers=1)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = towers.SentenceTransformer(str(tmp_path), device="cpu")
    expected = copy.deepcopy(model)
    pairs = {"first": ["a b c", "d e", "f", "g a"], "second": ["b c", "e h d", "f f", "h"]}

    class TowersTrainer(MethodsMixin, towers.SentenceTransformerTrainer):
        pass

    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    loss = losses.MultipleNegativesRankingLoss
    trainer = TowersTrainer(
        model,
        towers.SentenceTransformerTrainingArguments(
            tmp_path, **by_hand.SHORT, learning_rate=0.1, optim="sgd", max_grad_norm=0.0
        ),
        train_dataset=Dataset.from_dict(pairs),
        loss=loss(model),
        methods=[FGM(epsilon=0.5)],
    )
    trainer.train()

    features, _ = trainer.collect_features(next(iter(trainer.get_train_dataloader())))
    assert len(features) == 2
    (name,) = (name for name, _ in expected.named_parameters() if "word_embeddings" in name)
    grads = on_weights(expected, lambda model: loss(model)(copy.deepcopy(features), None), [name], steps=[0.5])
    with torch.no_grad():
        for name, p in expected.named_parameters():
            p -= 0 if grads[name] is None else 0.1 * grads[name]
    assert by_hand.distance(model, expected) < 1e-6


WITHOUT = """
import sys, warnings
warnings.simplefilter("error")
sys.modules["fastNLP"] = None  # as if it were not installed
"""
REFUSES = """
def refused(text):
    try:
        import fastnlp_adv.trainers.transformers
    except ImportError as error:
        assert "Expected transformers 4.55 or later" in str(error) and text in str(error), error
    else:
        raise AssertionError(text)
sys.modules["transformers"] = None
refused("but got import of transformers halted")
del sys.modules["transformers"]
warnings.simplefilter("default")  # transformers' own
import transformers
version, transformers.__version__ = transformers.__version__, "4.54.1"
refused("but got transformers 4.54.1")
transformers.__version__ = version
"""
TRAINS = """
import tempfile, torch
from fastnlp_adv import AWP, FGM, VAT, RDrop
from fastnlp_adv.trainers.transformers import AdversarialTrainer
with warnings.catch_warnings(record=True) as seen:
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
    size = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    data = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(i % 2)} for i in range(4)]
    for methods in ([FGM(relative=True)], [AWP()], [RDrop()], [VAT()]):
        model = BertForSequenceClassification(BertConfig(**size))
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(folder, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True)
            AdversarialTrainer(model=model, args=args, train_dataset=data, methods=methods).train()
assert not [w for w in seen if "fastnlp" in w.filename.lower() or "fastnlp" in str(w.message).lower()], seen
"""


def test_it_works_without_fastnlp_and_with_a_transformers_that_is_new_enough():
    done = run([sys.executable, "-c", WITHOUT + REFUSES + TRAINS], cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
