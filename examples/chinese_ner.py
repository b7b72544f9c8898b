"""
Named entities in the People's Daily, character by character, on fastNLP's own parts: Vocabulary, DataBundle, LSTM,
ConditionalRandomField and SpanFPreRecMetric, from scratch. Compares plain training, FGM, PGD, R-Drop, and
FGM + R-Drop; takes minutes on 2 CPU cores.

    python chinese_ner.py
    python chinese_ner.py --train-size 20000 --epochs 8 --methods "plain, FGM"

R-Drop compares predictions, and a conditional random field predicts whole sequences of tags instead of a tag at
each position. `sequence_divergence` is the divergence between distributions over sequences.
"""

from __future__ import annotations

import argparse

import report
import torch
from chinese_data import Tagged, load_tagged
from cli import check_methods, names, one_line_errors, positive, progress_bar
from fastNLP import (
    BucketedBatchSampler,
    Callback,
    DataSet,
    SpanFPreRecMetric,
    Trainer,
    Vocabulary,
    prepare_torch_dataloader,
)
from fastNLP.core.utils import seq_len_to_mask
from fastNLP.io import DataBundle
from fastNLP.modules.torch import LSTM, ConditionalRandomField
from fastNLP.modules.torch.decoder.crf import allowed_transitions
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback, compat

compat.repair()  # fastNLP's dataloaders on torch 2


def sequence_divergence(first: Tensor, second: Tensor) -> Tensor:
    """
    The mean of both KL divergences between two conditional random fields with the same transitions: distributions over
    whole sequences. With emissions e and marginals m it is the sum over positions and tags of

        (m_1 - m_2) * (e_1 - e_2) / 2,

    since the transitions and the normalizers cancel. (The divergence of softmax(e_1) and softmax(e_2), position by
    position, would compare distributions that the model never predicts.)

    :param first: emissions and, up to a constant, marginals, of shape ``(examples, positions, 2 * tags)``.
    :param second: the same of the other forward.
    :return: the terms of shape ``(examples, positions)``.
    """
    (e1, m1), (e2, m2) = first.chunk(2, dim=-1), second.chunk(2, dim=-1)
    return ((m1 - m2) * (e1 - e2)).sum(-1) / 2


def real_characters(batch: dict, outputs: dict) -> Tensor:
    """The positions that R-Drop compares: not the padding."""
    return seq_len_to_mask(batch["seq_len"], max_len=outputs["pred"].shape[1])


def rdrop(kl_weight: float) -> RDropCallback:
    return RDropCallback(kl_weight=kl_weight, divergence=sequence_divergence, mask=real_characters)


def methods(epsilon: float, kl_weight: float) -> dict[str, list[Callback]]:
    return {
        "plain": [],
        "FGM": [FGMCallback(epsilon=epsilon)],
        "PGD": [PGDCallback(epsilon=epsilon)],
        "R-Drop": [rdrop(kl_weight)],
        "FGM + R-Drop": [FGMCallback(epsilon=epsilon), rdrop(kl_weight)],
    }


class Tagger(nn.Module):
    """
    A bidirectional LSTM under a conditional random field.

    :param with_marginals: whether the training step also returns the input of :func:`sequence_divergence`, as ``pred``.
    """

    def __init__(self, words: Vocabulary, tags: Vocabulary, size: int = 64, with_marginals: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(len(words), size, padding_idx=words.padding_idx)
        nn.init.uniform_(self.embedding.weight, -((3 / size) ** 0.5), (3 / size) ** 0.5)  # as fastNLP does
        self.lstm = LSTM(size, hidden_size=size, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.emit = nn.Linear(2 * size, len(tags))
        allowed = allowed_transitions(tags, encoding_type="bio", include_start_end=True)
        self.crf = ConditionalRandomField(len(tags), include_start_end_trans=True, allowed_transitions=allowed)
        self.with_marginals = with_marginals

    def forward(self, words, seq_len):
        hidden, _ = self.lstm(self.dropout(self.embedding(words)), seq_len=seq_len)
        return self.emit(self.dropout(hidden))

    def train_step(self, words, target, seq_len):
        emissions, mask = self(words, seq_len), seq_len_to_mask(seq_len, max_len=words.shape[1])
        losses = self.crf(emissions, target, mask)
        outputs = {"loss": losses.sum() / seq_len.sum()}  # for each character, as R-Drop's divergence is
        if self.with_marginals:
            # the loss of a random field falls with an emission by the marginal, less 1 for the tag that is right
            (slopes,) = torch.autograd.grad(losses.sum(), emissions, create_graph=True)
            outputs["pred"] = torch.cat([emissions, slopes], dim=-1)
        return outputs

    def evaluate_step(self, words, target, seq_len):
        mask = seq_len_to_mask(seq_len, max_len=words.shape[1])
        pred, _ = self.crf.viterbi_decode(self(words, seq_len), mask)
        return {"pred": pred, "target": target, "seq_len": seq_len}


def index_characters(data: Tagged, max_length: int, test_size: int) -> tuple[DataBundle, Vocabulary, Vocabulary]:
    """The data as numbers, without longer sentences, so that no entity is cut."""
    kept = {
        name: [row for row in rows if len(row[0]) <= max_length]
        for name, rows in (("train", data.train), ("test", data.test[:test_size]))
    }
    sets = {
        name: DataSet(
            {"words": [w for w, _ in rows], "target": [t for _, t in rows], "seq_len": [len(w) for w, _ in rows]}
        )
        for name, rows in kept.items()
    }
    words = Vocabulary(min_freq=2).from_dataset(sets["train"], field_name="words")
    tags = Vocabulary(padding=None, unknown=None).from_dataset(*sets.values(), field_name="target")
    words.index_dataset(*sets.values(), field_name="words")
    tags.index_dataset(*sets.values(), field_name="target")
    return DataBundle(datasets=sets).set_pad("words", words.padding_idx).set_pad("target", 0), words, tags


def trainer_for(model: nn.Module, bundle: DataBundle, tags: Vocabulary, callbacks: list, args, **options) -> Trainer:
    train, test = bundle.get_dataset("train"), bundle.get_dataset("test")
    # sentences of similar length share a batch; the sampler has a separate seed, so all methods have the same order
    batches = BucketedBatchSampler(train, length="seq_len", batch_size=args.batch_size, seed=args.seed)
    options.setdefault("progress_bar", progress_bar(every=50))
    return Trainer(
        model=model,
        driver="torch",
        device="cpu",
        n_epochs=args.epochs,
        optimizers=torch.optim.Adam(model.parameters(), lr=args.lr),
        train_dataloader=prepare_torch_dataloader(train, batch_sampler=batches),
        evaluate_dataloaders=prepare_torch_dataloader(test, batch_size=128),
        evaluate_every=-args.epochs - 1,  # at the end, not every epoch
        metrics={"span": SpanFPreRecMetric(tag_vocab=tags, encoding_type="bio")},
        callbacks=callbacks,
        **options,
    )


def parse_args(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    add = parser.add_argument
    add("--methods", type=names, default=", ".join(methods(1.0, 1.0)), help="(default: all, %(default)s)")
    add("--train-size", type=positive, default=6000, help="number of training sentences (default: %(default)s)")
    add("--test-size", type=positive, default=2000, help="number of test sentences (default: %(default)s)")
    add("--max-length", type=positive, default=80, help="maximum characters per sentence (default: %(default)s)")
    add("--epochs", type=positive, default=4, help="(default: %(default)s)")
    add("--batch-size", type=positive, default=32, help="(default: %(default)s)")
    add("--lr", type=float, default=5e-3, help="learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed of weights, dropout and batches (default: %(default)s)")
    add("--epsilon", type=float, default=1.0, help="size of the perturbation (default: %(default)s)")
    add("--kl-weight", type=float, default=1.0, help="weight of R-Drop's divergence (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser, argv)
    torch.set_num_threads(1)  # a second thread would only wait: the model is small
    with one_line_errors(parser):
        known = methods(args.epsilon, args.kl_weight)
        check_methods(args.methods, known)
        data = load_tagged(args.train_size)
    bundle, words, tags = index_characters(data, args.max_length, args.test_size)
    rows = {}
    for name in args.methods:
        print(f"--- {name}")
        torch.manual_seed(args.seed)
        model, timer = Tagger(words, tags, with_marginals="R-Drop" in name), report.StepTimer("cpu")
        with one_line_errors(parser):
            trainer = trainer_for(model, bundle, tags, [*known[name], timer], args)
        trainer.run(catch_KeyboardInterrupt=False)
        found = trainer.evaluator.run()
        rows[name] = {**{key: found[f"{key}#span"] for key in ("f", "pre", "rec")}, "seconds": timer.median}
    sizes = [len(bundle.get_dataset(name)) for name in ("train", "test")]
    print_table(rows, f"BiLSTM + CRF on {sizes[0]} sentences of the People's Daily, {sizes[1]} to test on")
    return rows


def print_table(rows: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title, caption="One seed: differences of a point are not significant.")
    first = next(iter(rows.values()))
    for name in ("method", "F1", "precision", "recall", "seconds per step", f"ratio to {next(iter(rows))}"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, row in rows.items():
        shares = [f"{row[key]:.1%}" for key in ("f", "pre", "rec")]
        table.add_row(name, *shares, f"{row['seconds']:.3f}", f"{row['seconds'] / first['seconds']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
