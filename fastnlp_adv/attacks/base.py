"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_arguments
from ..tap import Tap
from ..tapped import Tapped

__all__ = ["Attack", "Pass"]


@dataclass(frozen=True)
class Pass:
    """
    One forward and backward pass of a training step.

    :param weight: the factor of its loss.
    :param trains: whether parameters get gradients; if not, only the gradient at the embeddings is computed.
    :param adversarial: whether the input is perturbed.
    :param last: whether it is the last one, in which distributed training reduces the gradients.
    """

    weight: float = 1.0
    trains: bool = True
    adversarial: bool = False
    last: bool = False

    def weigh(self, loss: Tensor) -> Tensor:
        """The loss times its factor."""
        return loss if self.weight == 1 else loss * self.weight


class Attack(Tapped, ABC):
    """
    An attack describes its step as a generator of passes, :meth:`passes`; whoever drives it runs the model in between.

    :param model: the model.
    :param taps: where it reads gradients and puts perturbations.
    :param dropout_mask: ``"new"``, or ``"same"`` for one dropout mask in all passes of a step.
    """

    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast: torch.dtype | None = None

    def __init__(self, model: nn.Module, taps: list[Tap], dropout_mask: str = "new"):
        self._model = model
        self.grad_norm: Tensor | None = None
        self.perturbation_norm: Tensor | None = None
        self.skipped: Tensor | None = None
        super().__init__(model, taps, dropout_mask)

    @classmethod
    def check(cls, **arguments: Any) -> None:
        """
        Check the arguments alone, without a model.

        :param arguments: those of the constructor, but for the model.
        :raises ValueError: if one is out of range.
        """
        check_arguments(arguments)

    @abstractmethod
    def passes(self) -> Iterator[Pass]:
        """Yield the passes of one step, and set the perturbation for each before it is yielded."""

    @contextmanager
    def running(self) -> Iterator[Iterator[Pass]]:
        """The passes of one step; whatever happens in between, the model is left as it was."""
        with super().running(), closing(self._begun()) as passes:  # type: ignore[type-var]
            yield passes

    @contextmanager
    def precision(self, each: Pass) -> Iterator[None]:
        """
        Where the model runs in a pass: in ``inner_autocast``, if there is one and nothing trains.

        :param each: the pass.
        """
        with ExitStack() as stack:
            if not each.trains:
                self._autocast(stack, enabled=True)
            yield

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> list[Tensor | None]:
        with ExitStack() as stack:
            self._autocast(stack, enabled=False)  # each operation has the precision of its forward already
            return super().differentiate(loss, create_graph=create_graph)

    def _autocast(self, stack: ExitStack, *, enabled: bool) -> None:
        if self.inner_autocast is not None:
            for device in sorted({p.device.type for p in self._model.parameters()}):
                # the cache would hand out weights as an autocast around this one has cast them
                autocast = torch.autocast(device, self.inner_autocast, enabled=enabled, cache_enabled=False)
                stack.enter_context(autocast)

    def _begun(self) -> Iterator[Pass]:
        with closing(self.passes()) as passes, self.replay.step() as begin_pass:  # type: ignore[type-var]
            for each in passes:
                for tap in self.taps:
                    tap.begin_pass(keep_leaves=not each.trains)
                begin_pass()
                yield each

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """
        Run all passes of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss; called once a pass.
        :return: the loss of the first pass that trains, detached.
        """
        first: Tensor | None = None
        with self.running() as passes:
            for each in passes:
                with self.precision(each):
                    loss = closure()
                if each.trains:
                    each.weigh(loss).backward()
                    first = loss.detach() if first is None else first
                else:
                    self.differentiate(loss)
        assert first is not None
        return first

    def record(self, moved: list[tuple[list[Tensor], list[Tensor]]]) -> None:
        """
        Note norms, and whether there was nothing to climb.

        :param moved: for each tap, its gradients and the perturbation that they led to.
        """
        self.grad_norm = _total_norm([g for grads, _ in moved for g in grads])
        self.perturbation_norm = _total_norm([v for _, values in moved for v in values])
        for grads, _ in moved:
            peak = torch.stack([grad.abs().amax() for grad in grads]).amax()
            skipped = (~(peak.isfinite() & (peak > 0))).long()
            self.skipped = skipped if self.skipped is None else self.skipped + skipped


def _total_norm(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
