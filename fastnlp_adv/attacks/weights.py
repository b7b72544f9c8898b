"""Attacks on the weights themselves: train where they are moved against the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from ..method import Cost, SharesDropout
from ..taps import Delta, Tap, WeightTap, fits, refuse_sharded
from .base import Attack, Pass
from .passes import InnerPrecision

__all__ = ["WeightAttack"]


class WeightAttack(SharesDropout, InnerPrecision, Attack):
    """
    An attack that moves weights along their gradient in a pass, for the next one. They are written in place, and put
    back bit for bit when the step ends, however it ends.
    """

    # Attributes of attacks without the argument.
    params: str = "*"
    adv_weight: float = 1.0
    replace: bool = True

    has_two_losses: ClassVar[bool] = True

    @property
    def cost(self) -> Cost:
        return Cost(2, 2 - self.replace, int(self.replace))

    def find_taps(self, model: nn.Module) -> list[Tap]:
        refuse_sharded(model, f"{type(self).__name__}, which moves the weights,")
        return [WeightTap(name, param) for name, param in _matched(model, self.params).items()]

    def passes(self) -> Iterator[Pass]:
        yield Pass(trains=not self.replace)
        self.record(self.move([tap for tap in self.taps if isinstance(tap, WeightTap) and tap.has_grad]))
        yield Pass(weight=self.adv_weight, adversarial=True, last=True)

    @abstractmethod
    def move(self, taps: list[WeightTap]) -> list[list[Delta]]:
        """Move the weights that have a gradient, and return what :meth:`record` takes."""

    def check_grad(self) -> bool:
        if any(tap.has_grad for tap in self.taps):
            return True
        if not any(tap.had_grad for tap in self.taps):
            chosen = f" that matches `params={self.params!r}`" if "params" in self.names() else ""
            raise RuntimeError(
                f"Expected the first pass to bring a gradient to a parameter{chosen}, but got none. See that the loss "
                f"depends on it and that it requires gradients{', or give other `params`' if chosen else ''}."
            )
        return False


def _matched(model: nn.Module, params: str) -> dict[str, nn.Parameter]:
    named = list(model.named_parameters(remove_duplicate=False))  # a tied weight fits by either of its names
    names = {param: name for name, param in reversed(named) if fits(name, params)}
    trainable = [f"`{name}`" for name, param in named if param.requires_grad]
    if not trainable:
        raise ValueError(
            f"Expected the model to have a trainable parameter, but got {len(named)} that require no gradient. Call "
            "`requires_grad_()` on those that are to be trained."
        )
    if not any(param.requires_grad for param in names):
        more = f" and {len(trainable) - 20} more" if len(trainable) > 20 else ""
        raise ValueError(
            f"Expected `params` to match the name of a trainable parameter, but got {params!r}. The model trains "
            f"{', '.join(trainable[:20])}{more}. Give part of one of these names, or a glob."
        )
    return {name: param for param, name in names.items()}
