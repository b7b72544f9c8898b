"""An attack on a part of the batch in a Trainer, beside a loop written by hand: accumulation, R-Drop, raw text."""

from __future__ import annotations

import copy

import pytest
import torch
from support import Classifier, build, collate, distance, loader, samples, train, weights
from torch.nn.functional import cross_entropy

from fastnlp_adv import FGM, PGD, FGMCallback, PGDCallback, RDrop, RDropCallback, RDropMixin

DATA = samples(16)


class Alone(Classifier):
    """Without dropout; what the two predictions of R-Drop differ by falls from row to row, or from call to call."""

    def __init__(self, by="row"):
        super().__init__(dropout=0.0)
        self.by, self.calls = by, 0

    def train_step(self, input_ids, labels):
        return self.after(self.word_embeddings(input_ids), labels)

    def after(self, embedded, labels):
        self.calls += 1
        pred = self.head(self.rnn(embedded)[0].mean(1))
        pred = pred * (
            torch.linspace(1, 0.5, len(pred)).unsqueeze(-1) if self.by == "row" else 1 / (1 + self.calls % 2)
        )
        return {"loss": cross_entropy(pred, labels), "pred": pred}


class Mixed(RDropMixin, Alone):
    rdrop_kl_weight = 1.0


def by_hand(model, mode, fraction, replace, accumulation):
    """Three batches after the other: FGM with one vector per token type, on the rows that an attack draws."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(1)
    twin = FGM(copy.deepcopy(model), fraction=fraction)
    rdrop = RDrop(mode="two_pass" if mode == "mixin" else mode) if mode else None

    def loss(ids, labels, move, rows):
        """That of examples whose perturbation is a row per token type, at the positions of ``rows``."""

        def step(batch):
            ids = batch["ids"]
            chosen = batch["attacked"].view(-1, 1, 1)
            return model.after(
                model.word_embeddings(ids) + move[ids] * chosen * (ids != 0).unsqueeze(-1), batch["labels"]
            )

        attacked = torch.zeros(len(ids))
        attacked[rows] = 1
        batch = {"ids": ids, "labels": labels, "attacked": attacked}
        return (step(batch) if rdrop is None else rdrop(step, batch))["loss"]

    for number in range(4):
        batch = collate(DATA[4 * number : 4 * number + 4])
        ids, labels = batch["input_ids"], batch["labels"]
        rows = twin.choose(len(ids))
        part, every = (ids[rows], labels[rows]), range(len(rows))
        move = torch.zeros_like(model.word_embeddings.weight).requires_grad_()
        if replace:
            (g,) = torch.autograd.grad(loss(*part, move, every), move)
        else:
            first = loss(ids, labels, move, rows) / accumulation
            first.backward()
            g = move.grad
        move = 0.7 * g / g.norm()
        (loss(*((ids, labels, move, rows) if replace else (*part, move, every))) / accumulation).backward()
        if (number + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("mode", [None, "concat", "two_pass", "mixin"])
@pytest.mark.filterwarnings("ignore:R-Drop found no dropout")
def test_trains_as_the_loop_by_hand(mode, replace, accumulation):
    cls, by = (Mixed if mode == "mixin" else Alone), ("row" if mode == "concat" else "call")
    expected = by_hand(Alone(by).double(), mode, 0.5, replace, accumulation)
    model = cls(by).double()
    callbacks = [RDropCallback(mode=mode)] if mode in ("concat", "two_pass") else []
    callbacks.append(FGMCallback(0.7, fraction=0.5, replace=replace))
    train(model, callbacks, data=DATA, n_batches=4, accumulation_steps=accumulation)
    assert distance(model, expected) < 1e-7
    assert distance(by_hand(Alone(by).double(), mode, 1, replace, accumulation), expected) > 1e-5


@pytest.mark.parametrize("callback", [FGMCallback, PGDCallback])
def test_a_fraction_of_1_is_the_default_to_the_bit(callback):
    models = []
    for arguments in ({}, {"fraction": 1}, {"fraction": 0.95}):  # of 4 examples, all
        models.append(Classifier())
        train(models[-1], [callback(**arguments)])
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert torch.equal(weights(models[0]), weights(models[2]))


def test_fields_of_raw_text_and_the_name_of_what_no_part_can_be_taken_of():
    class Reader(Classifier):
        def train_step(self, input_ids, labels, texts):
            assert len(texts) == len(labels)
            return super().train_step(input_ids, labels)

    data = [{**sample, "texts": str(i), "all": torch.tensor(i)} for i, sample in enumerate(samples(12))]

    def collated(batch):
        return {
            **collate([{k: s[k] for k in ("input_ids", "labels")} for s in batch]),
            "texts": [s["texts"] for s in batch],
        }

    dataloader = loader(data)
    dataloader.collate_fn = collated
    trainer = build(Reader(), [FGMCallback(fraction=0.5)], train_dataloader=dataloader, n_batches=3)
    trainer.run()
    dataloader.collate_fn = lambda batch: {**collated(batch), "extra": torch.zeros(3, 2)}
    trainer = build(Reader(), [FGMCallback(fraction=0.5)], train_dataloader=dataloader, n_batches=3)
    with pytest.raises(ValueError, match=r"`batch\['extra'\]`.*no part of it can be taken.*Use `fraction=1`"):
        trainer.run()


def test_the_first_line_says_how_many_are_attacked():
    assert FGM(Classifier(), fraction=0.25).describe().endswith("shared by the micro-batch, in 0.25 of the examples")
    assert "of the examples" not in PGD(Classifier()).describe()


def test_the_fraction_is_live():
    callback, model, seen = FGMCallback(replace=True), Classifier(), []
    model.word_embeddings.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    trainer = build(model, [callback], n_batches=2)
    original = trainer.on_train_batch_end

    def narrow():
        original()
        callback.fraction = 0.25

    trainer.on_train_batch_end = narrow
    trainer.run()
    assert seen[:4] == [4, 4, 1, 4]
