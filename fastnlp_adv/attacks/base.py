"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
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


@arguments
class Attack(ModelMethod, ABC):
    """
    An attack describes its step as a generator of passes, :meth:`passes`; whoever drives it runs the model in between.

    :param model: the model.
    """

    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast = cast(Any, None)  # without an annotation, which would make an argument of it
    #: the factor of all lengths that it perturbs by; below 1 while a callback warms up
    strength = 1.0

    def set_up(self, model: nn.Module | None, taps: list[Tap], dropout_mask: str = "new") -> None:
        super().set_up(model, taps, dropout_mask)
        #: the norms of the last ascent step, and how many had no direction, once there was one
        self.norms: dict[str, Tensor] = {}

    @property
    def skipped(self) -> Tensor | int:
        """How often a gradient was zero or not finite, or did not come, so that nothing was perturbed."""
        return self.norms["skipped"] + self.unreached if "skipped" in self.norms else self.unreached

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of the gradients in the last ascent step; ``None`` before the first."""
        return self.norms.get("grad")

    @property
    def perturbation_norm(self) -> Tensor | None:
        """The norm of the perturbations after the last ascent step; ``None`` before the first."""
        return self.norms.get("perturbation")

    @abstractmethod
    def passes(self) -> Iterator[Pass]:
        """Yield the passes of one step, and set the perturbation for each before it is yielded."""

    @contextmanager
    def running(self) -> Iterator[Iterator[Pass]]:
        """Yield the passes of one step; whatever happens in between, the model is left as it was."""
        with super().running(), closing(self._begun()) as passes:  # type: ignore[type-var]
            yield passes

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Enclose the forward of a pass that does not train: in ``inner_autocast``, if there is one."""
        with ExitStack() as stack:
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
        replay = self.replay.step() if self.replay.same else nullcontext()
        with closing(self.passes()) as passes, replay as begin_pass:  # type: ignore[type-var]
            for number, each in enumerate(passes):
                for tap in self.taps:
                    tap.begin_pass(keep_leaves=not each.trains)
                if begin_pass is not None:
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
                with nullcontext() if each.trains else self.precision():
                    loss = closure()
                if each.trains:
                    (loss if each.weight == 1 else loss * each.weight).backward()
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
        grads, values = [], []
        without: Tensor | int = 0
        for each in moved:
            peaks = []
            for delta in each:
                wide = torch.promote_types(delta.grad.dtype, torch.float32)
                grads.append(torch.linalg.vector_norm(delta.grad, dtype=wide))
                values.append(torch.linalg.vector_norm(delta.value, dtype=wide))
                if delta.grad.numel():
                    peaks.append(delta.grad.abs().amax())
            if peaks:
                peak = peaks[0] if len(peaks) == 1 else torch.stack(peaks).amax()
                without = without + (~(peak.isfinite() & (peak > 0))).long()
            else:
                self.unreached += 1
        if grads:
            self.norms["grad"] = _total(grads)
            self.norms["perturbation"] = _total(values)
        if isinstance(without, Tensor):
            self.norms["skipped"] = without + self.norms["skipped"] if "skipped" in self.norms else without


def _total(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
