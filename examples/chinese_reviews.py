"""
Chinese reviews, character by character, on fastNLP's own parts: Vocabulary, DataBundle and CNNText, from scratch.
Compares plain training, FGM, PGD, R-Drop, and FGM + R-Drop; takes minutes on 2 CPU cores.

    python chinese_reviews.py
    python chinese_reviews.py --train-size 13856 --methods "plain, FGM" --epsilon 0.5
    python chinese_reviews.py --attack 200 --report runs/chinese_reviews.html     # and attack the last model

`--epsilon` is the length of the perturbation of a batch, in the units of the embedding. fastNLP draws the rows of
a new embedding from (-sqrt(3/d), sqrt(3/d)), so each row is about 1 long for any dimension d, much longer than a step
of the optimizer. epsilon=1.0 moves each row of a batch of 32 reviews by a small fraction of its length, and training
also converges with 3.0.
"""

from __future__ import annotations

import argparse

import report
import torch
from cli import check_methods, names, one_line_errors, positive, progress_bar
from data import Data, load_data
from fastNLP import Accuracy, BucketedBatchSampler, Callback, DataSet, Trainer, Vocabulary, prepare_torch_dataloader
from fastNLP.io import DataBundle
from fastNLP.models.torch import CNNText
from torch import nn

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback, Typos, VocabularyTokenizer, compat, write_report
from fastnlp_adv.robustness import Attacked, robust_accuracy

compat.repair()  # fastNLP's dataloaders on torch 2

NAMES = ["negative", "positive"]


def methods(epsilon: float, kl_weight: float) -> dict[str, list[Callback]]:
    return {
        "plain": [],
        "FGM": [FGMCallback(epsilon=epsilon)],
        "PGD": [PGDCallback(epsilon=epsilon)],
        "R-Drop": [RDropCallback(kl_weight=kl_weight)],
        "FGM + R-Drop": [FGMCallback(epsilon=epsilon), RDropCallback(kl_weight=kl_weight)],
    }


class Classifier(CNNText):
    """CNNText whose training step also returns its logits, which R-Drop compares."""

    def __init__(self, vocabulary: Vocabulary, num_labels: int, size: int = 64):
        # padding stays zero, since the convolutions read beyond the ends of a text
        rows = nn.Embedding(len(vocabulary), size, padding_idx=vocabulary.padding_idx)
        nn.init.uniform_(rows.weight, -((3 / size) ** 0.5), (3 / size) ** 0.5)  # as fastNLP does
        rows.weight.data[vocabulary.padding_idx] = 0
        super().__init__(rows, num_labels, kernel_nums=(30, 40, 50), kernel_sizes=(1, 3, 5), dropout=0.3)

    def train_step(self, words, target, seq_len):
        # CNNText's mask is as wide as the longest text, which may not be among the attacked rows (`fraction`)
        pred = self(words[:, : int(seq_len.max())], seq_len)["pred"]
        return {"loss": nn.functional.cross_entropy(pred, target), "pred": pred}

    def evaluate_step(self, words, target, seq_len):
        return {"pred": self(words, seq_len)["pred"].argmax(-1), "target": target}


def index_characters(data: Data, max_length: int) -> tuple[DataBundle, Vocabulary]:
    bundle = DataBundle(datasets={"train": DataSet(data.train[:]), "test": DataSet(data.test[:])})
    bundle.apply_field(lambda text: list(text)[:max_length] or [" "], "text", "words", progress_bar=None)
    bundle.apply_field(len, "words", "seq_len", progress_bar=None)
    bundle.rename_field("label", "target")
    bundle.delete_field("text")
    vocabulary = Vocabulary(min_freq=2).from_dataset(bundle.get_dataset("train"), field_name="words")
    vocabulary.index_dataset(*bundle.datasets.values(), field_name="words")
    return bundle.set_pad("words", vocabulary.padding_idx), vocabulary


def trainer_for(model: nn.Module, bundle: DataBundle, callbacks: list[Callback], args, **options) -> Trainer:
    train, test = bundle.get_dataset("train"), bundle.get_dataset("test")
    # texts of similar length share a batch; the sampler has a separate seed, so all methods have the same order
    batches = BucketedBatchSampler(train, length="seq_len", batch_size=args.batch_size, seed=args.seed)
    options.setdefault("progress_bar", progress_bar(every=100))
    return Trainer(
        model=model,
        driver="torch",
        device="cpu",
        n_epochs=args.epochs,
        optimizers=torch.optim.Adam(model.parameters(), lr=args.lr),
        train_dataloader=prepare_torch_dataloader(train, batch_sampler=batches),
        evaluate_dataloaders=prepare_torch_dataloader(test, batch_size=256),
        evaluate_every=-args.epochs - 1,  # at the end, not every epoch
        metrics={"accuracy": Accuracy()},
        callbacks=callbacks,
        **options,
    )


def attack(model: Classifier, vocabulary: Vocabulary, data: Data, size: int, max_length: int) -> list[Attacked]:
    """Typos in the first test texts: swapped, lost and doubled characters, and homophones."""
    rows = data.test.select(range(min(size, len(data.test))))
    tokenizer = VocabularyTokenizer(vocabulary, max_length=max_length)

    def step(batch):
        return model(batch["input_ids"], batch["attention_mask"].sum(1))["pred"]

    return Typos(model, tokenizer, step=step).attack(list(rows["text"]), list(rows["label"]))


def parse_args(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    add = parser.add_argument
    add("--dataset", default="chinese-reviews", help="chinese-reviews, or a .csv or .tsv file (default: %(default)s)")
    add("--methods", type=names, default=", ".join(methods(1.0, 1.0)), help="(default: all, %(default)s)")
    add("--train-size", type=positive, default=8000, help="number of training texts (default: %(default)s)")
    add("--max-length", type=positive, default=100, help="maximum characters per text (default: %(default)s)")
    add("--epochs", type=positive, default=4, help="(default: %(default)s)")
    add("--batch-size", type=positive, default=32, help="(default: %(default)s)")
    add("--lr", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed of weights, dropout and batches (default: %(default)s)")
    add("--epsilon", type=float, default=1.0, help="size of the perturbation (default: %(default)s)")
    add("--kl-weight", type=float, default=1.0, help="weight of R-Drop's divergence (default: %(default)s)")
    add("--attack", type=positive, help="number of test texts of each model to attack with typos; needs pypinyin")
    add("--report", help="write the attacked texts of the last model to this page")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[report.Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser, argv)
    torch.set_num_threads(1)  # a second thread would only wait: the model is small
    with one_line_errors(parser):
        if args.report and not args.attack:
            raise ValueError("Expected `--attack` beside `--report`, but got none. Give the number of texts to attack.")
        known = methods(args.epsilon, args.kl_weight)
        check_methods(args.methods, known)
        data = load_data(args.dataset, args.train_size)
    bundle, vocabulary = index_characters(data, args.max_length)
    results, under_attack = [], {}
    for name in args.methods:
        print(f"--- {name}")
        torch.manual_seed(args.seed)
        model, timer = Classifier(vocabulary, data.num_labels), report.StepTimer("cpu")
        with one_line_errors(parser):
            trainer = trainer_for(model, bundle, [*known[name], timer], args)
        trainer.run(catch_KeyboardInterrupt=False)
        accuracy = trainer.evaluator.run()["acc#accuracy"]
        results.append(report.Result(name, accuracy, timer.median, len(timer.seconds), len(data.test)))
        if args.attack:
            under_attack[name] = attack(model, vocabulary, data, args.attack, args.max_length)
    title = f"CNNText on the characters of {len(data.train)} texts, {data.source}, epsilon {args.epsilon:g}"
    report.print_table(results, title=title)
    for name, found in under_attack.items():
        left = robust_accuracy(found)
        print(f"{name}: {left:.1%} of {left.attacked} texts right after 2 typos, {left.not_attacked} not attacked")
    if args.report:
        labels = NAMES if args.dataset == "chinese-reviews" else None
        print(f"Written to {write_report(found, args.report, names=labels, title=f'Typos: {name}')}")
    return results


if __name__ == "__main__":
    main()
