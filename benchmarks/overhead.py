"""
The callback's own overhead: what is left when the passes are as good as free.

On a model that does next to nothing with lookups of full size, a step under a callback and a step of a loop that is
written by hand for that model differ by what the package adds. That is set against a plain step of the real model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.setting import Setting
from benchmarks.textbook import Step
from benchmarks.timing import Stepper, steppers
from benchmarks.variants import PLAIN, Variant, ours
from fastnlp_adv.callbacks import METHODS

NEVER = 10**9


class Cheap(nn.Module):
    """Word vectors, their mean, and a linear layer. What stands in ``rows`` is added to the word vectors."""

    rows: Tensor | None = None

    def __init__(self, setting: Setting):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(setting.vocab, setting.hidden)
            self.head = nn.Linear(setting.hidden, 2)
        self.to(setting.device)

    def train_step(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        vectors = self.embedding(input_ids)
        if self.rows is not None:
            vectors = vectors + F.embedding(input_ids, self.rows)
        pred = self.head(vectors.mean(1))
        return {"loss": F.cross_entropy(pred, labels), "pred": pred}


def by_hand(model: Cheap, epsilon: float = 1.0, alpha: float = 1.0, steps: int = 1) -> Step:
    """FGM, or PGD where there are more steps, by who knows this one model: the same passes and nothing around them."""

    def ascended(rows: Tensor, gradient: Tensor) -> Tensor:
        rows = rows + alpha * gradient / gradient.norm().clamp(min=1e-30)
        return rows * (epsilon / rows.norm().clamp(min=epsilon))

    def step(trainer, batch) -> None:
        trainer.backward(trainer.train_step(batch))
        rows = ascended(torch.zeros_like(model.embedding.weight), model.embedding.weight.grad)
        for _ in range(steps - 1):
            model.rows = rows.requires_grad_()
            (gradient,) = torch.autograd.grad(trainer.train_step(batch)["loss"], rows)
            rows = ascended(rows.detach(), gradient)
        model.rows = rows
        trainer.backward(trainer.train_step(batch))
        model.rows = None
        trainer.step()
        trainer.zero_grad()

    return step


def variants() -> list[Variant]:
    """Each callback, and after it the loop that it is compared with."""
    fgm, pgd = METHODS["FGM"].cost(), METHODS["PGD"].cost()
    return [
        ours("FGM"),  # by hand, it does not grow
        Variant("FGM, by hand", "FGM", fgm, loop=by_hand),
        ours("PGD", "PGD-3"),
        Variant("PGD-3, by hand", "PGD", pgd, loop=lambda model: by_hand(model, alpha=0.5, steps=3)),
        ours("FGM", "FGM, skipped step", start=NEVER),
        PLAIN,
    ]


#: what is compared with what
PAIRS = {
    "FGM": "FGM, by hand",
    "PGD-3": "PGD-3, by hand",
    "FGM, skipped step": "plain",
}


def prepared(setting: Setting) -> dict[str, Stepper]:
    """The variants on the cheap model."""
    return steppers(setting, variants(), model=Cheap(setting))
