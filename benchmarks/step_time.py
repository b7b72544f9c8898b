"""
What a step costs, in units of a plain one, beside the textbook loops that clone weights and gradients.

    python benchmarks/step_time.py                      # 16 x 32 tokens, 30,000 words, 6 layers of 384
    python benchmarks/step_time.py --vocab 250000 --hidden 256 --rounds 10

All variants take their steps in turn, so that a machine whose speed drifts slows them alike; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from fastNLP import Callback, Trainer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback


class Model(nn.Module):
    def __init__(self, args: argparse.Namespace):
        super().__init__()
        config = BertConfig(
            vocab_size=args.vocab,
            hidden_size=args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.hidden // 32,
            intermediate_size=4 * args.hidden,
        )
        self.bert = BertForSequenceClassification(config)

    def train_step(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.bert(input_ids=input_ids, labels=labels)
        return {"loss": outputs.loss, "pred": outputs.logits}


def textbook_fgm(model: Model, epsilon: float = 1.0) -> Callable[[Trainer, Any], None]:
    """Clone the matrix, move it along its gradient, train, put the clone back."""
    weight = model.bert.get_input_embeddings().weight

    def step(trainer: Trainer, batch: Any) -> None:
        trainer.backward(trainer.train_step(batch))
        clone = weight.detach().clone()
        norm = weight.grad.norm()
        if norm > 0:
            weight.data.add_(epsilon * weight.grad / norm)
        trainer.backward(trainer.train_step(batch))
        weight.data = clone
        trainer.step()
        trainer.zero_grad()

    return step


def textbook_pgd(model: Model, epsilon: float = 1.0, alpha: float = 0.3, steps: int = 3) -> Callable:
    """Clone the matrix and all gradients, climb and project, put the gradients back, train, put the clone back."""
    weight = model.bert.get_input_embeddings().weight

    def step(trainer: Trainer, batch: Any) -> None:
        trainer.backward(trainer.train_step(batch))
        clone = weight.detach().clone()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        for climb in range(steps):
            norm = weight.grad.norm()
            if norm > 0:
                weight.data.add_(alpha * weight.grad / norm)
                moved = weight.data - clone
                if moved.norm() > epsilon:
                    moved = epsilon * moved / moved.norm()
                weight.data = clone + moved
            if climb < steps - 1:
                model.zero_grad()
                trainer.backward(trainer.train_step(batch))
        for name, p in model.named_parameters():
            p.grad = gradients.get(name)
        trainer.backward(trainer.train_step(batch))
        weight.data = clone
        trainer.step()
        trainer.zero_grad()

    return step


def textbook_rdrop(model: Model, kl_weight: float = 1.0) -> Callable[[Trainer, Any], None]:
    """Two forward passes, and the mean of the two divergences between them."""

    def step(trainer: Trainer, batch: Any) -> None:
        first, second = trainer.train_step(batch), trainer.train_step(batch)
        p, q = (F.log_softmax(outputs["pred"], -1) for outputs in (first, second))
        kl = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(
            q, p, log_target=True, reduction="batchmean"
        )
        trainer.backward({"loss": (first["loss"] + second["loss"]) / 2 + kl_weight * kl / 2})
        trainer.step()
        trainer.zero_grad()

    return step


#: name: callbacks, textbook loop, the least that it can cost
VARIANTS: dict[str, tuple[list[Callback], Callable | None, float]] = {
    "plain": ([], None, 1),
    "FGM": ([FGMCallback()], None, 2),
    "FGM, textbook": ([], textbook_fgm, 2),
    "FGM, replace": ([FGMCallback(replace=True)], None, 5 / 3),
    "PGD-3": ([PGDCallback(steps=3)], None, 2 + 4 / 3),
    "PGD-3, textbook": ([], textbook_pgd, 4),
    "R-Drop, concat": ([RDropCallback()], None, 2),
    "R-Drop, two_pass": ([RDropCallback(mode="two_pass")], None, 2),
    "R-Drop, textbook": ([], textbook_rdrop, 2),
}


def prepare(args: argparse.Namespace, name: str, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A function that takes one training step of a variant in a Trainer of its own."""
    callbacks, textbook, _ = VARIANTS[name]
    torch.manual_seed(0)
    model = Model(args)
    trainer = Trainer(
        model=model,
        driver="torch",
        device=args.device,
        train_dataloader=DataLoader([batch], batch_size=None),
        optimizers=torch.optim.SGD(model.parameters(), lr=1e-4),
        callbacks=callbacks,
        batch_step_fn=textbook(model) if textbook else None,
        progress_bar=None,
    )
    trainer.n_batches = 10**6
    trainer.on_train_begin()
    model.train()
    on_device = trainer.move_data_to_device(batch)

    def step() -> None:
        trainer.train_batch_loop.batch_step_fn(trainer, on_device)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 16, "length": 32, "vocab": 30000, "hidden": 384, "layers": 6, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    batch = {
        "input_ids": torch.randint(1, args.vocab, (args.batch, args.length)),
        "labels": torch.randint(0, 2, (args.batch,)),
    }
    steps = {name: prepare(args, name, batch) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_ in track(range(args.rounds + 2), description="rounds"):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - begin)
    report(args, seconds)


def report(args: argparse.Namespace, seconds: dict[str, list[float]]) -> None:
    title = f"{args.batch} x {args.length} tokens, {args.vocab} words, {args.layers} layers of {args.hidden}"
    table = Table(title=title, caption=f"medians of {args.rounds} rounds; in brackets the quartiles of the ratio")
    for column in ("variant", "seconds a step", "in plain steps", "limit"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, times in seconds.items():
        ratios = [own / plain for own, plain in zip(times, seconds["plain"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
        table.add_row(name, f"{statistics.median(times):.3f}", ratio, f"{VARIANTS[name][2]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
