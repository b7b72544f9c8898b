"""
Fine-tune a pretrained encoder on labelled texts, without a method or with methods of fastnlp_adv:

    python train_text_classification.py --method fgm
    python train_text_classification.py --method fgm+rdrop --dataset my_reviews.csv
    python train_text_classification.py --method rdrop --dataset glue/sst2 --model bert-base-uncased
    torchrun --nproc_per_node 2 train_text_classification.py --method fgm

Method names are in lower case, with `+` between an attack and regularizers. Copy this folder, and
adapt it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import report
import torch
from cli import add_arguments, one_line_errors, progress_bar
from data import Data, load_data
from fastNLP import (
    Accuracy,
    BucketedBatchSampler,
    Callback,
    DataSet,
    SortedSampler,
    TorchWarmupCallback,
    Trainer,
    prepare_torch_dataloader,
)
from fastNLP.io import DataBundle
from launch import finish, is_first, place
from models import load_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastnlp_adv import callbacks, compat

compat.repair()  # fastNLP's dataloaders on torch 2


NONE = "none"
#: the callback of each method
METHODS = {name.lower(): entry.callback for name, entry in callbacks.METHODS.items()}


def method(text: str) -> str:
    """Check the name of a method."""
    unknown = [name for name in text.split("+") if name not in METHODS] if text != NONE else []
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected {NONE}, or of {', '.join(METHODS)}, with + between several, but got {unknown[0]!r}"
        )
    return text


def callbacks_of(text: str, epsilon: float | None = None, kl_weight: float = 1.0) -> list[Callback]:
    sizes = {"epsilon": epsilon, "kl_weight": kl_weight}
    given = {name: size for name, size in sizes.items() if size is not None}  # each attack has a default of its own
    chosen = [] if text == NONE else [METHODS[name] for name in text.split("+")]
    return [each(**{name: size for name, size in given.items() if name in each.names()}) for each in chosen]


class TextClassifier(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def train_step(self, input_ids, attention_mask, labels):
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": outputs.loss, "pred": outputs.logits}

    def evaluate_step(self, input_ids, attention_mask, labels):
        outputs = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return {"pred": outputs.logits.argmax(dim=-1), "target": labels}

    def forward(self, input_ids, attention_mask, labels):  # fastNLP calls it under DistributedDataParallel
        step = self.train_step if self.training else self.evaluate_step
        return step(input_ids, attention_mask, labels)


def tokenize(data: Data, tokenizer, max_length: int) -> DataBundle:
    bundle = DataBundle(datasets={"train": DataSet(data.train[:]), "test": DataSet(data.test[:])})

    def process(text):
        encoded = tokenizer(text, truncation=True, max_length=max_length)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    bundle.apply_field_more(process, field_name="text", progress_bar=None)
    bundle.rename_field("label", "labels")
    bundle.delete_field("text")
    return bundle.set_pad("input_ids", tokenizer.pad_token_id)


def build(
    model: nn.Module,
    bundle: DataBundle,
    callbacks: list[Callback],
    args: argparse.Namespace,
    **options,
) -> Trainer:
    train, test = bundle.get_dataset("train"), bundle.get_dataset("test")
    # Texts of similar length share a batch, to save padding. The sampler has a separate seed: one order for all methods
    batches = BucketedBatchSampler(train, length="input_ids", batch_size=args.batch_size, seed=args.seed)
    by_length = SortedSampler(test, length="input_ids")
    options.setdefault("progress_bar", progress_bar())
    options.setdefault("device", args.device)
    return Trainer(
        model=model,
        driver="torch",
        n_epochs=args.epochs,
        optimizers=adamw(model, args.lr),
        train_dataloader=prepare_torch_dataloader(train, batch_sampler=batches),
        evaluate_dataloaders=prepare_torch_dataloader(test, batch_size=2 * args.batch_size, sampler=by_length),
        metrics={"accuracy": Accuracy()},
        callbacks=[*callbacks, TorchWarmupCallback(warmup=0.1)],
        **options,
    )


def adamw(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """Make the optimizer, fused if torch supports it on the device."""
    parameters = list(model.parameters())
    try:
        return torch.optim.AdamW(parameters, lr=lr, fused=True)
    except RuntimeError:  # torch before 2.4 has none for the CPU
        return torch.optim.AdamW(parameters, lr=lr)


def prepare(
    callbacks: list[Callback], data: Data, args: argparse.Namespace, fused: bool = True, **options
) -> tuple[Trainer, PreTrainedModel, PreTrainedTokenizerBase]:
    torch.manual_seed(args.seed)
    backbone, tokenizer = load_model(args.model, data.num_labels, fused=fused)
    bundle = tokenize(data, tokenizer, max_length=min(args.max_length, tokenizer.model_max_length))
    model, where = place(TextClassifier(backbone), args.device)
    return build(model, bundle, callbacks, args, **where, **options), backbone, tokenizer


def run(method: str, data: Data, args: argparse.Namespace, folder: Path, parser) -> report.Result:
    timer = report.StepTimer(args.device)
    with one_line_errors(parser):
        folder.mkdir(parents=True, exist_ok=True)
        chosen = callbacks_of(method, args.epsilon, args.kl_weight)
        trainer, backbone, tokenizer = prepare([*chosen, timer], data, args, fused="gradientpenalty" not in method)
    trainer.run(catch_KeyboardInterrupt=False)  # Ctrl-C stops the program, not only the training
    accuracy = trainer.evaluator.run()["acc#accuracy"]
    result = report.Result(method, accuracy, timer.median, len(timer.seconds), len(data.test))
    if not is_first():
        return result
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # so that `--model` can name the folder
    report.save(asdict(result), vars(args), folder)
    return result


def main(argv: list[str] | None = None) -> report.Result:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told = f"{NONE}, or of {', '.join(METHODS)}, with + between several (default: %(default)s)"
    parser.add_argument("--method", type=method, default=NONE, help=told)
    add_arguments(parser)
    args = parser.parse_args(argv)
    with one_line_errors(parser):
        data = load_data(args.dataset, args.train_size)
    say = print if is_first() else lambda _: None
    say(f"{args.method}: {args.model} on {len(data.train)} texts of {data.source}")
    folder = args.output_dir / args.method
    result = run(args.method, data, args, folder, parser)
    say(f"accuracy {result.accuracy:.4f}, {result.step_seconds:.3f} seconds per step; saved in {folder}")
    finish()
    return result


if __name__ == "__main__":
    main()
