"""The textbook loops, written from the definitions: they write to the weights, and clone what they have to restore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Step = Callable[[Any, Any], None]  # what fastNLP's `batch_step_fn` is: takes the Trainer and the batch


def fgm(model: nn.Module, epsilon: float = 1.0) -> Step:
    """Clone the matrix, move it along its gradient, train, put the clone back."""
    weight = model.embedding.weight

    def step(trainer: Any, batch: Any) -> None:
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


def pgd(model: nn.Module, epsilon: float = 1.0, alpha: float | None = None, steps: int = 3) -> Step:
    """Clone the matrix and all gradients, ascend and project, put the gradients back, train, put the clone back."""
    weight = model.embedding.weight
    length = 1.5 * epsilon / steps if alpha is None else alpha

    def ascend(clone: torch.Tensor) -> None:
        norm = weight.grad.norm()
        if norm > 0:
            weight.data.add_(length * weight.grad / norm)
            moved = weight.data - clone
            if moved.norm() > epsilon:
                moved = epsilon * moved / moved.norm()
            weight.data = clone + moved

    def step(trainer: Any, batch: Any) -> None:
        trainer.backward(trainer.train_step(batch))
        clone = weight.detach().clone()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        for inner in range(steps):
            ascend(clone)
            if inner < steps - 1:
                model.zero_grad()
                trainer.backward(trainer.train_step(batch))
        for name, p in model.named_parameters():
            p.grad = gradients.get(name)
        trainer.backward(trainer.train_step(batch))
        weight.data = clone
        trainer.step()
        trainer.zero_grad()

    return step


def pgd_on_part(
    model: nn.Module, divisor: int, epsilon: float = 1.0, alpha: float | None = None, steps: int = 3
) -> Step:
    """Ascend on one of ``divisor`` parts of the batch alone, then train once on all of it, that part perturbed."""
    length = (epsilon if steps == 1 else 1.5 * epsilon / steps) if alpha is None else alpha

    def step(trainer: Any, batch: Any) -> None:
        ids, labels = batch["input_ids"], batch["labels"]
        part = torch.randperm(len(ids))[: max(1, len(ids) // divisor)]
        looked_up = model.embedding(ids[part]).detach()
        delta = torch.zeros_like(looked_up)
        for _ in range(steps):
            moved = (looked_up + delta).requires_grad_()
            loss = trainer.train_step({"inputs_embeds": moved, "labels": labels[part]})["loss"]
            (gradient,) = torch.autograd.grad(loss, moved)
            delta = delta + length * gradient / gradient.norm().clamp(min=1e-30)
            delta = delta * (epsilon / delta.norm().clamp(min=1e-30)).clamp(max=1)
        embeds = model.embedding(ids).index_add(0, part, delta)
        trainer.backward(trainer.train_step({"inputs_embeds": embeds, "labels": labels}))
        trainer.step()
        trainer.zero_grad()

    return step


def freelb(model: nn.Module, alpha: float = 0.1, steps: int = 3, init: float = 0.05) -> Step:
    """Noise on the looked up vectors; each pass trains with its share of the loss, and moves the noise on."""

    def step(trainer: Any, batch: Any) -> None:
        delta = torch.zeros_like(model.embedding(batch["input_ids"]))
        delta = delta.uniform_(-1, 1) * init / delta[0].numel() ** 0.5
        for _ in range(steps):
            delta.requires_grad_()
            embeds = model.embedding(batch["input_ids"]) + delta
            outputs = trainer.train_step({"inputs_embeds": embeds, "labels": batch["labels"]})
            trainer.backward({"loss": outputs["loss"] / steps})
            gradient = delta.grad.clone().detach()
            norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-30).view(-1, 1, 1)
            delta = (delta + alpha * gradient / norm).detach()
        trainer.step()
        trainer.zero_grad()

    return step


def rdrop(model: nn.Module, kl_weight: float = 1.0) -> Step:
    """Two forward passes, and the mean of the two divergences between them."""

    def step(trainer: Any, batch: Any) -> None:
        first, second = trainer.train_step(batch), trainer.train_step(batch)
        p, q = (F.log_softmax(outputs["pred"], -1) for outputs in (first, second))
        kl = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(
            q, p, log_target=True, reduction="batchmean"
        )
        trainer.backward({"loss": (first["loss"] + second["loss"]) / 2 + kl_weight * kl / 2})
        trainer.step()
        trainer.zero_grad()

    return step
