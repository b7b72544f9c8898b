"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import forwards
from ..batch import Part, count_examples, take_part
from ..learning import Learning
from ..method import Method, is_first_process, logger
from ..random_state import Noise
from ..schedule import Growing, Pacing
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


class Attack(Growing, Method, ABC):
    """An attack describes its step as a generator of passes, :meth:`passes`; its driver runs the model in between."""

    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast: torch.dtype | None = None
    #: which fraction of the examples of a batch is attacked
    fraction: float = 1.0
    #: whether a step has a clean and an adversarial pass, whose losses tell whether the training learns
    has_two_losses: ClassVar[bool] = False

    def _forget(self) -> None:
        super()._forget()
        #: the stream that the attacked examples are drawn from
        self.choice = Noise(1)
        #: the norms of the last ascent step, and how many had no direction, once there was one
        self.norms: dict[str, Tensor] = {}
        #: the factor of all lengths that it perturbs by in this step
        self.strength: Tensor | float = 1.0
        self.pacing = Pacing()
        self.learning = Learning(type(self).__name__, self.names()[0])
        #: the losses of this batch: of its first pass, and of the last adversarial one
        self.losses: dict[str, Tensor] = {}
        #: a warning that the training does not learn, for the driver to log
        self.warning = ""

    @property
    def skipped(self) -> Tensor | int:
        """How often a gradient was missing, zero or not finite, so that nothing was perturbed."""
        return self.norms["skipped"] + self.without_grad if "skipped" in self.norms else self.without_grad

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
        """
        Yield the passes of one step, and set the perturbation for each before it is yielded. The gradients at the taps
        can be read after each pass, but not after the last of several: they are not computed there.
        """

    @contextmanager
    def running(
        self, batch: Any = None, *, accumulation_steps: int = 1, total_steps: float | None = None
    ) -> Iterator[Iterator[Pass]]:
        """
        Yield the passes of one step; whatever happens in between, the model is left as it was. Where ``start`` or
        ``every`` leaves the method out, there is one plain pass.

        :param batch: the batch, of which an attack with a ``fraction`` below 1 takes a part.
        :param accumulation_steps: how many batches make an optimizer step.
        :param total_steps: the optimizer steps of the training, for ``start`` and ``warmup`` as fractions of it.
        """
        self.progress.begin_batch(accumulation_steps, total_steps)
        with self.driven(batch) as passes:
            yield passes
        self.log_in_a_loop()

    @contextmanager
    def driven(self, batch: Any) -> Iterator[Iterator[Pass]]:
        """Yield the passes of one step of which ``progress`` is known, and count it."""
        self.prepare()
        self.losses = {}
        with forwards.one_batch():
            if not self.acts:
                yield iter([Pass(last=True)])
            else:
                with super().running(), closing(self._begun(batch)) as passes:  # type: ignore[type-var]
                    yield passes
        self.count_batch()

    def prepare(self) -> None:
        """Set the strength of this step."""
        if self.model is None:
            _ = self.attached
        if self.warmup == "auto":
            self.pacing.begin_step(self.progress.step)
        self.strength = self.strength_at(self.progress, self.pacing)

    @property
    def acts(self) -> bool:
        """Whether this step is more than a plain one; a strength on the device is not read."""
        return isinstance(self.strength, Tensor) or self.strength > 0

    def observe(self, loss: Tensor, each: Pass) -> None:
        """
        Take the loss of a pass, which ``warmup="auto"`` follows. Where you run the passes of :meth:`running` yourself,
        call it in each.

        :param loss: the loss, not divided for accumulation.
        :param each: the pass.
        """
        loss = loss.detach() if loss.requires_grad else loss
        self.losses.setdefault("first", loss)
        if each.adversarial:
            self.losses["adversarial"] = loss

    def count_batch(self) -> None:
        """Count a batch that has been trained, and follow its losses."""
        loss = self.losses.get("first")
        if self.warmup == "auto":
            if loss is None:
                raise RuntimeError(
                    "Expected the loss of each batch with `warmup='auto'`, but got none. Use `step(closure)`, call "
                    "`observe(loss, each)` in each pass of `running()`, or give `attack(loss=loss)`."
                )
            self.pacing.note(loss, self.progress.step)
        self.progress.batches += 1
        if loss is not None and self.has_two_losses:
            self.warning = self.learning.note(loss, self.losses.get("adversarial"), self.progress)

    def describe_strength(self) -> str:
        """Return a line about where ``warmup="auto"`` stands; it reads the device."""
        return self.pacing.describe(type(self).__name__, self.names()[0])

    def log_in_a_loop(self) -> None:
        """Log what a callback of a Trainer logs by itself: what is perturbed, once, and warnings."""
        self.describe_once()
        warning, self.warning = self.warning, ""
        if warning and is_first_process():
            logger.warning(warning)

    def precision(self, *, enabled: bool = True) -> AbstractContextManager[Any]:
        """Enclose the forward of a pass that does not train: in ``inner_autocast``, if there is one."""
        return nullcontext() if self.inner_autocast is None else self._autocast(enabled)

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> None:
        with self.precision(enabled=False):  # each operation has the precision of its forward already
            super().differentiate(loss, create_graph=create_graph)

    @contextmanager
    def _autocast(self, enabled: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for device in sorted({p.device.type for p in self.attached.parameters()}):
                # the cache would hand out weights as an autocast around this one has cast them
                autocast = torch.autocast(device, self.inner_autocast, enabled=enabled, cache_enabled=False)
                stack.enter_context(autocast)
            yield

    def choose(self, examples: int) -> Tensor:
        """
        Draw which examples of a batch are attacked. The same everywhere, since the CPU draws them.

        :param examples: how many the batch has.
        :return: ``round(fraction * examples)`` indices, at least one; ascending, for sequences sorted by length.
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
        begin_pass = self.begin_dropout()
        with closing(self.passes()) as passes:  # type: ignore[type-var]
            for number, each in enumerate(passes):
                for tap in self.taps:
                    is_read = number == 0 or not each.last
                    tap.begin_pass(inner=not each.trains, is_read=is_read, part=part, alone=each.part)
                if part is not None:
                    each = replace(each, batch=taken if each.part else None)
                begin_pass()
                yield each
                trained += each.weight * each.trains
                if number == 0 and not self.check_grad():  # the batch does not use the embedding: train plainly
                    self.without_grad += len(self.taps)
                    for tap in self.taps:
                        tap.begin_pass(is_read=False)
                    if not each.last:
                        yield Pass(weight=1 - trained, last=True, only_reduces=trained == 1)
                    return

    def step(
        self,
        closure: Callable[..., Tensor],
        batch: Any = None,
        *,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> Tensor:
        """
        Run all passes of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss; called once per pass, without arguments, or,
            if there is a ``batch``, with what it is to run on.
        :param batch: the batch, as a dict, a tuple or list of fields, or one tensor. Only an attack with a ``fraction``
            below 1 needs it.
        :param accumulation_steps: how many batches make an optimizer step, for ``start``, ``every`` and ``warmup``.
        :param total_steps: the optimizer steps of the training, for ``start`` and ``warmup`` as fractions of it.
        :return: the loss of the first pass that trains, detached.
        """
        first: Tensor | None = None
        with self.running(batch, accumulation_steps=accumulation_steps, total_steps=total_steps) as passes:
            for each in passes:
                if each.only_reduces:
                    break
                with nullcontext() if each.trains else self.precision():
                    loss = closure() if batch is None else closure(each.of(batch))
                self.observe(loss, each)
                if each.trains:
                    (loss if each.weight == 1 else loss * each.weight).backward()
                    first = loss.detach() if first is None else first
                else:
                    self.differentiate(loss)
        assert first is not None
        return first

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.is_unattached:
            return state
        learning = {"learning": self.learning.state_dict()} if self.has_two_losses else {}
        pacing = {"pacing": self.pacing.state_dict()} if self.warmup == "auto" else {}
        return {**state, "choice": self.choice.state_dict(), **learning, **pacing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.is_unattached:
            return
        if "choice" in state:
            self.choice.load_state_dict(state["choice"])
        if "learning" in state:
            self.learning.load_state_dict(state["learning"])
        if "pacing" in state:
            device = next((p.device for p in self.attached.parameters()), torch.device("cpu"))
            self.pacing.load_state_dict(state["pacing"], device)

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
                self.without_grad += 1
        if grads:
            self.norms["grad"] = _total(grads)
            self.norms["perturbation"] = _total(values)
        if isinstance(without, Tensor):
            self.norms["skipped"] = without + self.norms["skipped"] if "skipped" in self.norms else without


def _total(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
