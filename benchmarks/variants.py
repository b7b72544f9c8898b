"""The ways to train that are compared: this package's callbacks, the textbook loops, and the least each can cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastNLP import Callback
from torch import nn

from benchmarks import textbook
from fastnlp_adv.attacks.weights import WeightAttack
from fastnlp_adv.callbacks import METHODS
from fastnlp_adv.method import Cost


@dataclass(frozen=True)
class Variant:
    """
    One way to train: its name, the line it belongs to in a figure, the passes of a step, and what runs them. All passes
    but a full one run on a ``share`` of the batch.
    """

    name: str
    family: str
    cost: Cost
    callbacks: Callable[[], list[Callback]] = list
    loop: Callable[[nn.Module], textbook.Step] | None = None
    share: float = 1.0

    @property
    def limit(self) -> float:
        return 1 + self.share * (limit(self.cost) - 1)


def limit(cost: Cost) -> float:
    """
    The plain steps that these passes take. A plain step is 3 units: forward, gradients of activations and gradients of
    weights; a backward pass that ends at the embeddings saves the last.
    """
    return (cost.forwards + 2 * cost.backwards + cost.inner) / 3


PLAIN = Variant("plain", "plain", Cost(1, 1, 0))


def ours(method: str, name: str | None = None, family: str | None = None, **arguments: Any) -> Variant:
    """A method as a callback."""
    row = METHODS[method]
    name = name or method
    share = arguments.get("fraction", 1.0)
    cost = row.cost(**arguments)
    if issubclass(row.method, WeightAttack):  # its inner pass goes to the weights
        cost = Cost(cost.forwards, cost.backwards + cost.inner, 0)
    return Variant(name, family or name, cost, lambda: [row.callback(**arguments)], share=share)


def by_the_book(name: str, family: str, passes: int, loop: Callable[..., textbook.Step], **arguments: Any) -> Variant:
    """A textbook loop, in which every pass is a full one."""
    cost = Cost(passes, passes, 0)
    return Variant(f"{name}, textbook", f"{family}, textbook", cost, loop=lambda model: loop(model, **arguments))


def fgm() -> list[Variant]:
    return [ours("FGM"), by_the_book("FGM", "FGM", 2, textbook.fgm)]


def pgd(steps: int = 3) -> list[Variant]:
    name = f"PGD-{steps}"
    return [
        ours("PGD", name, "PGD", steps=steps),
        by_the_book(name, "PGD", steps + 1, textbook.pgd, steps=steps),
    ]


def freelb(steps: int = 3) -> list[Variant]:
    name = f"FreeLB-{steps}"
    return [
        ours("FreeLB", name, "FreeLB", steps=steps),
        by_the_book(name, "FreeLB", steps, textbook.freelb, steps=steps),
    ]


def rdrop(*, loop: bool = True) -> list[Variant]:
    concat = METHODS["RDrop"].cost(mode="concat")
    doubled = Cost(*(2 * passes for passes in concat))  # each of its passes is over twice the batch
    found = [
        replace(ours("RDrop", "R-Drop, concat", mode="concat"), cost=doubled),
        ours("RDrop", "R-Drop, two_pass", mode="two_pass"),
    ]
    return [*found, by_the_book("R-Drop", "R-Drop", 2, textbook.rdrop)] if loop else found


def headline() -> list[Variant]:
    """The methods that have a textbook loop, beside it."""
    return [
        PLAIN,
        *fgm(),
        ours("FGM", "FGM, replace", replace=True),
        *pgd(),
        *freelb(),
        *rdrop(),
    ]


def attacks() -> list[Variant]:
    """FGM and PGD beside their textbook loops."""
    return [PLAIN, *fgm(), *pgd()]


def parts() -> list[Variant]:
    """Attacks on a part of the batch, beside FGM on all of it, and FGM and PGD by hand."""
    return [
        PLAIN,
        ours("FGM"),
        ours("FGM", "FGM, replace", replace=True),
        ours("FGM", "FGM, 1/4", fraction=1 / 4),
        *part("FGM", "FGM, 1/4, replace", 4),
        *part("FGM", "FGM, 1/8, replace", 8),
        *part("PGD", "PGD-3, 1/4, replace", 4, steps=3),
        ours("PGD", "PGD-3, 1/4, replace, inner bfloat16", fraction=1 / 4, replace=True, inner_autocast=torch.bfloat16),
        ours("AWP", "AWP, 1/4, replace", fraction=1 / 4, replace=True),
        ours("SAM", "SAM, 1/4", fraction=1 / 4),
    ]


def part(method: str, name: str, divisor: int, **arguments: Any) -> list[Variant]:
    """A method on one of ``divisor`` parts of the batch, and the same passes by hand."""
    own = ours(method, name, fraction=1 / divisor, replace=True, **arguments)

    def loop(model: nn.Module) -> textbook.Step:
        return textbook.pgd_on_part(model, divisor, steps=own.cost.inner)

    hand = f"{name}, by hand"
    return [own, replace(own, name=hand, family=hand, callbacks=list, loop=loop)]


def every_method() -> list[Variant]:
    """All methods, with their default arguments."""
    return [PLAIN, *(rdrop(loop=False)[0] if name == "RDrop" else ours(name) for name in METHODS)]


#: those that a process of its own is told to run
BY_NAME = {variant.name: variant for variant in headline()}
