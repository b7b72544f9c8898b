"""
R-Drop inside a model of your own: add `RDropMixin` to its base classes, and train as before.

    python custom_model_rdrop.py
    python custom_model_rdrop.py --dataset my_reviews.csv --kl-weight 3

Trains a small convolutional network from scratch, without and with the mixin; takes seconds on a CPU.
"""

from __future__ import annotations

import argparse
import re

import report
import torch
from cli import one_line_errors, positive, progress_bar
from data import Data, load_data
from fastNLP import Accuracy, DataSet, Trainer, Vocabulary, prepare_torch_dataloader
from fastNLP.io import DataBundle
from torch import nn

from fastnlp_adv import RDropMixin, compat

compat.repair()  # fastNLP's dataloaders on torch 2


class TextCNN(nn.Module):
    def __init__(self, num_words: int, num_labels: int, size: int = 100, dropout: float = 0.3):
        super().__init__()
        self.embedding = nn.Embedding(num_words, size, padding_idx=0)
        self.embedding.weight.data.mul_(0.1)  # words start alike, and move apart as the labels require
        self.convolution = nn.Conv1d(size, size, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(size, num_labels)

    def forward(self, words):
        embedded = self.dropout(self.embedding(words))
        features = self.convolution(embedded.transpose(1, 2)).relu().amax(dim=-1)
        return self.classifier(self.dropout(features))

    def train_step(self, words, labels):
        pred = self(words)
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}

    def evaluate_step(self, words, labels):
        return {"pred": self(words).argmax(dim=-1), "target": labels}


class MyModel(RDropMixin, TextCNN):  # or `class MyModel(RDropMixin, nn.Module)`, with the methods above written here
    rdrop_kl_weight = 1.0


def index_words(data: Data) -> tuple[DataBundle, Vocabulary]:
    bundle = DataBundle(datasets={"train": DataSet(data.train[:]), "test": DataSet(data.test[:])})
    bundle.apply_field(
        lambda text: re.findall(r"\w+|[^\w\s]", text.lower()) or ["<unk>"], "text", "words", progress_bar=None
    )
    bundle.rename_field("label", "labels")
    bundle.delete_field("text")
    vocabulary = Vocabulary(min_freq=2).from_dataset(bundle.get_dataset("train"), field_name="words")
    vocabulary.index_dataset(*bundle.datasets.values(), field_name="words")
    return bundle.set_pad("words", vocabulary.padding_idx), vocabulary


def train(name: str, model: nn.Module, bundle: DataBundle, args: argparse.Namespace) -> report.Result:
    torch.manual_seed(args.seed)
    timer = report.StepTimer("cpu")
    loaders = prepare_torch_dataloader(bundle, batch_size=args.batch_size)
    trainer = Trainer(
        model=model,
        driver="torch",
        device="cpu",
        n_epochs=args.epochs,
        optimizers=torch.optim.Adam(model.parameters(), lr=args.lr),
        train_dataloader=loaders["train"],
        evaluate_dataloaders=loaders["test"],
        metrics={"accuracy": Accuracy()},
        callbacks=[timer],
        progress_bar=progress_bar(every=100),
    )
    trainer.run(catch_KeyboardInterrupt=False)
    accuracy = trainer.evaluator.run()["acc#accuracy"]
    return report.Result(name, accuracy, timer.median, len(timer.seconds), len(bundle.get_dataset("test")))


def parse_args(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    add = parser.add_argument
    add("--dataset", default="snippets", help="snippets, a .csv or .tsv file, or a data set on the Hugging Face hub")
    add("--train-size", type=positive, help="number of training texts; all by default")
    add("--epochs", type=positive, default=2, help="(default: %(default)s)")
    add("--batch-size", type=positive, default=32, help="(default: %(default)s)")
    add("--lr", type=float, default=3e-3, help="learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed of weights and dropout (default: %(default)s)")
    add("--kl-weight", type=float, default=1.0, help="weight of R-Drop's divergence (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[report.Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = parse_args(parser, argv)
    with one_line_errors(parser):
        data = load_data(args.dataset, args.train_size)
    bundle, vocabulary = index_words(data)
    models = {}
    for name, model_class in (("plain", TextCNN), ("R-Drop", MyModel)):
        torch.manual_seed(args.seed)
        models[name] = model_class(len(vocabulary), data.num_labels)
    models["R-Drop"].rdrop_kl_weight = args.kl_weight  # an instance may differ from its class
    results = [train(name, model, bundle, args) for name, model in models.items()]
    report.print_table(results, title=f"TextCNN on {len(data.train)} texts, {data.source}")
    return results


if __name__ == "__main__":
    main()
