"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..batch import Part, count_examples, take_part
from ..method import ModelMethod
from ..random_state import Noise
from ..taps import Delta

__all__ = ["Attack", "Pass"]

_WHOLE = "Use `fraction=1`, which attacks the batch as it is."


@dataclass(frozen=True)
class Pass:
    """
    One forward and backward pass of a training step.

    :param weight: the factor of its loss.
    :param trains: whether parameters get gradients; if not, only the gradient at the taps is computed.
    :param adversarial: whether the input is perturbed.
    :param last: whether it is the last one, in which distributed training reduces the gradients.
    :param only_reduces: whether that is all that it is for.
    :param part: whether it runs on the examples under attack alone, where ``fraction`` leaves others.
    :param batch: these examples; ``None`` for the whole batch.
    """

    weight: float = 1.0
    trains: bool = True
    adversarial: bool = False
    last: bool = False
    only_reduces: bool = False
    part: bool = False
    batch: Any = field(default=None, repr=False, compare=False)

    def of(self, batch: Any) -> Any:
        """Return what the pass runs on; a mapping as a shallow copy, from which the model may take fields out."""
        batch = batch if self.batch is None else self.batch
        return copy.copy(batch) if isinstance(batch, Mapping) else batch


class Attack(ModelMethod, ABC):
    """
    An attack describes its step as a generator of passes, :meth:`passes`; whoever drives it runs the model in between.

    :param model: the model.
    """

    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast = cast(Any, None)  # without annotations, which would make arguments of them
    #: which fraction of the examples of a batch is attacked
    fraction = cast(Any, 1)
    #: the factor of all lengths that it perturbs by; below 1 while a callback warms up
    strength = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        #: the stream that these examples are drawn from
        self.choice = Noise(1)
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
    def running(self, batch: Any = None) -> Iterator[Iterator[Pass]]:
        """
        Yield the passes of one step; whatever happens in between, the model is left as it was.

        :param batch: the batch, of which an attack with a ``fraction`` below 1 takes a part.
        """
        with super().running(), closing(self._begun(batch)) as passes:  # type: ignore[type-var]
            yield passes

    def precision(self, *, enabled: bool = True) -> AbstractContextManager[Any]:
        """Enclose the forward of a pass that does not train: in ``inner_autocast``, if there is one."""
        return nullcontext() if self.inner_autocast is None else self._autocast(enabled)

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> None:
        with self.precision(enabled=False):  # each operation has the precision of its forward already
            super().differentiate(loss, create_graph=create_graph)

    @contextmanager
    def _autocast(self, enabled: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for device in sorted({p.device.type for p in self.model.parameters()}):
                # the cache would hand out weights as an autocast around this one has cast them
                autocast = torch.autocast(device, self.inner_autocast, enabled=enabled, cache_enabled=False)
                stack.enter_context(autocast)
            yield

    def choose(self, examples: int) -> Tensor:
        """
        Draw which examples of a batch are attacked. The same everywhere, since the CPU draws them.

        :param examples: how many the batch has.
        :return: ``round(fraction * examples)`` indices, at least one, ascending, as models want that get sequences
            sorted by length; on the CPU.
        """
        number = max(1, round(self.fraction * examples))
        return torch.randperm(examples, generator=self.choice.on(torch.device("cpu")))[:number].sort().values

    def _part_of(self, batch: Any) -> Part | None:
        """Return which examples of a batch are attacked; ``None`` if they are all."""
        if batch is None:
            raise ValueError(
                f"Expected the batch, of which `fraction={self.fraction}` attacks a part, but got None. Use "
                "`step(closure, batch)`, whose closure takes what it is to run on, or `fraction=1`."
            )
        examples = count_examples(batch, _WHOLE)
        rows = self.choose(examples)
        return Part(rows, examples) if len(rows) < examples else None

    def _begun(self, batch: Any) -> Iterator[Pass]:
        trained = 0.0
        part = None if self.fraction == 1 else self._part_of(batch)
        taken = None if part is None else take_part(batch, part, _WHOLE)
        begin_pass = self.replay.step() if self.replay.same else None
        with closing(self.passes()) as passes:  # type: ignore[type-var]
            for number, each in enumerate(passes):
                for tap in self.taps:
                    tap.begin_pass(keep_leaves=not each.trains)
                if part is not None:
                    for lookups in self.embedding_taps:
                        lookups.part, lookups.alone = part, each.part
                    each = replace(each, batch=taken if each.part else None)
                if begin_pass is not None:
                    begin_pass()
                yield each
                trained += each.weight * each.trains
                if number == 0 and not self.check_reached():  # a batch that goes elsewhere: train on it plainly
                    self.unreached += len(self.taps)
                    for lookups in self.embedding_taps if part is not None else ():
                        lookups.part = None
                    if not each.last:
                        yield Pass(weight=1 - trained, last=True, only_reduces=trained == 1)
                    return

    def step(self, closure: Callable[..., Tensor], batch: Any = None) -> Tensor:
        """
        Run all passes of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss; called once per pass, without arguments, or,
            if there is a ``batch``, with what it is to run on.
        :param batch: the batch, as a dict, a tuple or list of fields, or one tensor. Only an attack with a ``fraction``
            below 1 needs it.
        :return: the loss of the first pass that trains, detached.
        """
        first: Tensor | None = None
        with self.running(batch) as passes:
            for each in passes:
                if each.only_reduces:
                    break
                with nullcontext() if each.trains else self.precision():
                    loss = closure() if batch is None else closure(each.of(batch))
                if each.trains:
                    (loss if each.weight == 1 else loss * each.weight).backward()
                    first = loss.detach() if first is None else first
                else:
                    self.differentiate(loss)
        assert first is not None
        return first

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "choice": self.choice.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if "choice" in state:
            self.choice.load_state_dict(state["choice"])

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
