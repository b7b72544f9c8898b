"""Every method of the package, one row each: what the suites, the cards and the table of methods are made from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from .attacks import ATTA, AWP, FGM, FGSM, PGD, TAVAT, Attack, FreeLB
from .callbacks import (
    ATTACallback,
    AWPCallback,
    FGMCallback,
    FGSMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    MethodCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)
from .regularizers import R3F, SMART, VAT, GradientPenalty, RDrop

__all__ = ["METHODS", "Cost", "Method"]


class Cost(NamedTuple):
    """
    What a step runs, where plain training runs ``Cost(1, 1, 0)``.

    :param forwards: forward passes.
    :param backwards: of these, how many a backward pass goes through to the parameters.
    :param inner: backward passes that end at the embeddings, at about half the price.
    """

    forwards: int
    backwards: int
    inner: int


@dataclass(frozen=True)
class Method:
    """
    One method.

    :param method: for plain loops.
    :param callback: for the Trainer.
    :param arxiv: the number of its paper at https://arxiv.org.
    :param purpose: what it is good for, in a few words.
    :param passes: the forward passes of a step, the backward passes to the parameters, and those that end at the
        embeddings, given the callback's arguments as attributes.
    """

    method: type
    callback: type[MethodCallback]
    arxiv: str
    purpose: str
    passes: Callable[[Any], tuple[int, int, int]]

    @property
    def name(self) -> str:
        """That of the method's class."""
        return self.method.__name__

    @property
    def paper(self) -> str:
        """The address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def kind(self) -> str:
        """``"attack"``, of which a Trainer takes one, or ``"regularizer"``, which all combine."""
        return "attack" if issubclass(self.method, Attack) else "regularizer"

    def cost(self, **arguments: Any) -> Cost:
        """
        What a step runs.

        :param arguments: those that are not at their defaults.
        :return: the passes, counted.

        Example::

            >>> METHODS["PGD"].cost(), METHODS["PGD"].cost(steps=5)
            (Cost(forwards=4, backwards=2, inner=2), Cost(forwards=6, backwards=2, inner=4))
        """
        defaults = {name: p.default for name, p in inspect.signature(self.callback).parameters.items()}
        return Cost(*self.passes(SimpleNamespace(**{**defaults, **arguments})))


def _clean_and_adversarial(a: Any, inner: int = 0) -> tuple[int, int, int]:
    return 2 + inner, 2 - a.replace, inner + a.replace


_ROWS = [
    Method(FGM, FGMCallback, "1605.07725", "robustness and often accuracy; try it first", _clean_and_adversarial),
    Method(FGSM, FGSMCallback, "1412.6572", "FGM with a bound on each coordinate", _clean_and_adversarial),
    Method(
        PGD,
        PGDCallback,
        "1706.06083",
        "robustness to stronger attacks than FGM's",
        lambda a: _clean_and_adversarial(a, a.steps - 1 + a.random_init),
    ),
    Method(
        FreeLB,
        FreeLBCallback,
        "1909.11764",
        "as PGD, with every pass training the model",
        lambda a: (a.steps, a.steps, 0),
    ),
    Method(
        TAVAT,
        TAVATCallback,
        "2004.14543",
        "as FreeLB, with perturbations of tokens that are kept from step to step",
        lambda a: (a.steps, a.steps, 0),
    ),
    Method(
        ATTA,
        ATTACallback,
        "1912.11969",
        "robustness at the price of plain training, over several epochs",
        lambda a: (1, 1, 0),
    ),
    Method(
        AWP,
        AWPCallback,
        "2004.05884",
        "flat minima: a loss that stays low when the weights move",
        _clean_and_adversarial,
    ),
    Method(
        RDrop,
        RDropCallback,
        "2106.14448",
        "predictions that agree under dropout; the batch is doubled",
        lambda a: (1, 1, 0) if a.mode == "concat" else (2, 2, 0),
    ),
    Method(VAT, VATCallback, "1704.03976", "few labels and many texts without", lambda a: (2 + a.steps, 2, a.steps)),
    Method(
        SMART,
        SMARTCallback,
        "1911.03437",
        "fine-tuning large pretrained models on little data",
        lambda a: (2 + a.steps + (a.bregman_weight > 0), 2, a.steps),
    ),
    Method(R3F, R3FCallback, "2008.03156", "as SMART, at the price of one more pass", lambda a: (2, 2, 0)),
    Method(
        GradientPenalty,
        GradientPenaltyCallback,
        "1711.09404",
        "a smooth loss without a perturbation to choose; needs second derivatives",
        lambda a: (1, 1, 1),
    ),
]

#: the methods by name
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
