"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..arguments import arguments
from ..method import ModelMethod
from ..taps import Delta, Tap

__all__ = ["Attack", "Pass"]


@dataclass(frozen=True)
class Pass:
    """
    One forward and backward pass of a training step.

    :param weight: the factor of its loss.
    :param trains: whether parameters get gradients; if not, only the gradient at the taps is computed.
    :param adversarial: whether the input is perturbed.
    :param last: whether it is the last one, in which distributed training reduces the gradients.
    :param only_reduces: whether that is all that it is for.
    """

    weight: float = 1.0
    trains: bool = True
    adversarial: bool = False
    last: bool = False
    only_reduces: bool = False

    def weigh(self, loss: Tensor) -> Tensor:
        """Return the loss times its factor."""
        return loss if self.weight == 1 else loss * self.weight


@arguments
class Attack(ModelMethod, ABC):
    """
    An attack describes its step as a generator of passes, :meth:`passes`; whoever drives it runs the model in between.

    :param model: the model.
    """

    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast = cast(Any, None)  # without an annotation, which would make an argument of it

    def set_up(self, model: nn.Module | None, taps: list[Tap], dropout_mask: str = "new") -> None:
        super().set_up(model, taps, dropout_mask)
        self.grad_norm: Tensor | None = None
        self.perturbation_norm: Tensor | None = None
        self._without_direction: Tensor | None = None

    @property
    def skipped(self) -> Tensor | int:
        """How often a gradient was zero or not finite, or did not come, so that nothing was perturbed."""
        return self.unreached if self._without_direction is None else self._without_direction + self.unreached

    @abstractmethod
    def passes(self) -> Iterator[Pass]:
        """Yield the passes of one step, and set the perturbation for each before it is yielded."""

    @contextmanager
    def running(self) -> Iterator[Iterator[Pass]]:
        """Yield the passes of one step; whatever happens in between, the model is left as it was."""
        with super().running(), closing(self._begun()) as passes:  # type: ignore[type-var]
            yield passes

    @contextmanager
    def precision(self, each: Pass) -> Iterator[None]:
        """
        Enclose the forward of a pass: in ``inner_autocast``, if there is one and nothing trains.

        :param each: the pass.
        """
        with ExitStack() as stack:
            if not each.trains:
                self._autocast(stack, enabled=True)
            yield

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> None:
        with ExitStack() as stack:
            self._autocast(stack, enabled=False)  # each operation has the precision of its forward already
            super().differentiate(loss, create_graph=create_graph)

    def _autocast(self, stack: ExitStack, *, enabled: bool) -> None:
        if self.inner_autocast is not None:
            for device in sorted({p.device.type for p in self.model.parameters()}):
                # the cache would hand out weights as an autocast around this one has cast them
                autocast = torch.autocast(device, self.inner_autocast, enabled=enabled, cache_enabled=False)
                stack.enter_context(autocast)

    def _begun(self) -> Iterator[Pass]:
        trained = 0.0
        with closing(self.passes()) as passes, self.replay.step() as begin_pass:  # type: ignore[type-var]
            for number, each in enumerate(passes):
                for tap in self.taps:
                    tap.begin_pass(keep_leaves=not each.trains)
                begin_pass()
                yield each
                trained += each.weight * each.trains
                if number == 0 and not self.check_reached():  # a batch that goes elsewhere: train on it plainly
                    self.unreached += len(self.taps)
                    if not each.last:
                        yield Pass(weight=1 - trained, last=True, only_reduces=trained == 1)
                    return

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """
        Run all passes of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss; called once per pass.
        :return: the loss of the first pass that trains, detached.
        """
        first: Tensor | None = None
        with self.running() as passes:
            for each in passes:
                if each.only_reduces:
                    break
                with self.precision(each):
                    loss = closure()
                if each.trains:
                    each.weigh(loss).backward()
                    first = loss.detach() if first is None else first
                else:
                    self.differentiate(loss)
        assert first is not None
        return first

    def record(self, moved: list[list[Delta]]) -> None:
        """
        Note norms, and count the gradients that had no direction.

        :param moved: for each tap its perturbations, with the gradients that led to them; none where the batch did not
            come to the tap.
        """
        deltas = [delta for each in moved for delta in each]
        if deltas:
            self.grad_norm = _total_norm([delta.grad for delta in deltas])
            self.perturbation_norm = _total_norm([delta.value for delta in deltas])
        for each in moved:
            grads = [delta.grad for delta in each if delta.grad.numel()]
            if not grads:
                self.unreached += 1
                continue
            peak = torch.stack([grad.abs().amax() for grad in grads]).amax()
            skipped = (~(peak.isfinite() & (peak > 0))).long()
            self._without_direction = skipped if self._without_direction is None else self._without_direction + skipped


def _total_norm(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
