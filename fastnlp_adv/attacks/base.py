"""The base of attacks: a step is a generator of passes, and one driver runs them in every kind of loop."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import forwards
from ..batch import Part, count_examples, scale_counts, take_part
from ..learning import Learning
from ..method import DropoutMask, Method, say
from ..random_state import Noise, same_dropout
from ..schedule import Growing, Pacing
from ..taps import Delta
from .passes import named_reuse, run_closure

_WHOLE = "Use `fraction=1`, which attacks the whole batch."


@dataclass(frozen=True)
class Pass:
    """
    One forward and backward pass of a training step.

    :param weight: the factor of its loss.
    :param trains: False if it computes only the gradient at the taps, and none of parameters.
    :param adversarial: True if the input, or the weights, are perturbed.
    :param last: True if it is the last one, in which distributed training reduces the gradients.
    :param only_reduces: True if the pass exists only to trigger gradient reduction.
    :param part: True if it runs on the attacked rows, where ``fraction`` leaves others.
    :param batch: these rows; ``None`` for the whole batch.
    """

    weight: float = 1.0
    trains: bool = True
    adversarial: bool = False
    last: bool = False
    only_reduces: bool = False
    part: bool = False
    batch: Any = field(default=None, repr=False, compare=False)

    def of(self, batch: Any) -> Any:
        """Return the batch that the pass runs on; a mapping as a shallow copy, which the model may take fields out."""
        batch = batch if self.batch is None else self.batch
        return copy.copy(batch) if isinstance(batch, Mapping) else batch


@dataclass
class Step:
    """The current step of an attack, or the last one."""

    #: the factor of all lengths of perturbations
    strength: Tensor | float = 1.0
    #: False for a plain step
    acts: bool = False
    #: of the first pass, and of the last adversarial one
    loss: Tensor | None = None
    adversarial_loss: Tensor | None = None


class Attack(Growing, Method, ABC):
    """An attack describes its step as a generator of passes, :meth:`passes`; :meth:`drive` runs the model in them."""

    #: the fraction of the examples of a batch that is attacked
    fraction: float = 1.0
    #: the precision of the forward of passes that do not train; ``None`` for the model's own
    inner_autocast: torch.dtype | None = None
    #: "same" for one dropout mask in all passes
    dropout_mask: DropoutMask = "new"
    #: True if a step has a clean and an adversarial pass, whose losses show whether the training learns
    has_two_losses: ClassVar[bool] = False

    def _forget(self) -> None:
        super()._forget()
        #: the stream that the attacked rows are drawn from
        self.choice = Noise(1)
        #: of the last ascent step: the norms of gradients and perturbations; and how many had no direction so far
        self.norms: dict[str, Tensor] = {}
        self.current = Step()
        self.pacing = Pacing()
        self.learning = Learning(type(self).__name__, self.names()[0])

    @property
    def skipped(self) -> Tensor | int:
        """How often a gradient was missing, zero or not finite, so that nothing was perturbed."""
        return self.norms["skipped"] + self.without_grad if "skipped" in self.norms else self.without_grad

    @property
    def strength(self) -> Tensor | float:
        """The factor of all lengths in this step, 1 without ``warmup``; it may be a tensor on the device."""
        return self.current.strength

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

    def drive(
        self,
        forward: Callable[[Pass], Tensor],
        backward: Callable[[Tensor, Pass], object],
        batch: Any = None,
        *,
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
        scale: Callable[[Tensor], Tensor] | None = None,
        reduces: bool = False,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> Tensor:
        """
        Run all passes of a step, in a loop of any kind. :meth:`step` is the short form for a plain one.

        :param forward: runs the model on ``each.of(batch)`` and returns the loss, not divided for accumulation.
        :param backward: takes the loss, times the weight of the pass, divides and scales it as the loop does, and
            runs the backward pass.
        :param no_sync: a context without gradient reduction, for all passes but the last.
        :param scale: divides and scales the loss of a pass that does not train, which does not reach ``backward``.
        :param reduces: True if the last pass must run even where it only reduces.
        :param accumulation_steps: how many batches make an optimizer step, for ``start``, ``every`` and ``warmup``.
        :param total_steps: the optimizer steps of the training, for ``start`` and ``warmup`` as fractions of it.
        :return: the loss of the first pass that trains, detached.
        """
        self.progress.begin_batch(accumulation_steps, total_steps)
        loss = self.run_passes(forward, backward, batch, no_sync, scale, reduces=reduces)
        self._log()
        return loss

    def run_passes(
        self,
        forward: Callable[[Pass], Tensor],
        backward: Callable[[Tensor, Pass], object],
        batch: Any,
        no_sync: Callable[[], AbstractContextManager[Any]],
        scale: Callable[[Tensor], Tensor] | None,
        *,
        reduces: bool,
    ) -> Tensor:
        """Run :meth:`drive` for trainers, which set ``progress`` and have logs of their own."""
        trained: Tensor | None = None
        with closing(self._prepared(batch)) as passes:
            for each in passes:
                if each.only_reduces and not reduces:
                    break
                with nullcontext() if each.last else no_sync():
                    with nullcontext() if each.trains else self.inner_forward(self.inner_autocast):
                        loss = forward(each)
                    self.observe(loss, each)
                    if each.trains:
                        trained = loss.detach() if trained is None else trained
                        backward(loss if each.weight == 1 else loss * each.weight, each)
                    else:
                        self.differentiate(loss if scale is None else scale(loss))
        self._count_batch()
        assert trained is not None
        return trained

    def _prepared(self, batch: Any) -> Generator[Pass, None, None]:
        """Yield the passes of one step, each ready to run; the model ends unperturbed, also after an exception."""
        self._begin_step()
        announced = forwards.scope.batch or forwards.Batch(batch)
        with forwards.scoped(batch=announced), ExitStack() as stack:
            if not self.current.acts:
                yield Pass(last=True)
                return
            for tap in self.taps:
                stack.enter_context(tap.on())
            part, taken = (None, batch) if self.fraction == 1 else self._part_of(batch)
            begin_forward = None if self.dropout_mask == "new" else same_dropout(self.model)
            trained = 0.0
            for number, each in enumerate(stack.enter_context(closing(self.passes()))):  # type: ignore[type-var]
                for tap in self.taps:
                    is_read = number == 0 or not each.last
                    tap.begin_pass(inner=not each.trains, is_read=is_read, part=part, alone=each.part)
                if begin_forward is not None:
                    begin_forward()
                announced.data = taken if each.part else batch
                yield replace(each, batch=taken) if each.part else each
                trained += each.weight * each.trains
                if number == 0 and not self.taps[0].has_grad and not self.check_grad():
                    # the batch does not use the embedding: train without the attack
                    self.without_grad += len(self.taps)
                    for tap in self.taps:
                        tap.begin_pass(is_read=False)
                    if not each.last:
                        yield Pass(weight=1 - trained, last=True, only_reduces=trained == 1)
                    return

    def _begin_step(self) -> None:
        if self.model is None:
            _ = self.attached
        step = self.current
        step.strength, step.loss, step.adversarial_loss = 1.0, None, None
        if self.start or self.warmup or self.every > 1:
            step.strength = self.strength_at(self.progress, self.pacing)
        step.acts = isinstance(step.strength, Tensor) or step.strength > 0  # a strength on the device is not read

    def observe(self, loss: Tensor, each: Pass) -> None:
        """
        Take the loss of a pass, which ``warmup="auto"`` follows. Where you run the passes of :meth:`running` yourself,
        call it in each.

        :param loss: the loss, not divided for accumulation.
        :param each: the pass.
        """
        loss = loss.detach()
        self.current.loss = loss if self.current.loss is None else self.current.loss
        if each.adversarial:
            self.current.adversarial_loss = loss

    def _count_batch(self) -> None:
        if self.warmup == "auto":
            if self.current.loss is None:
                raise RuntimeError(
                    "Expected the loss of each batch with `warmup='auto'`, but got none. Use `step(closure)`, call "
                    "`observe(loss, each)` in each pass of `running()`, or give `attack(loss=loss)`."
                )
            self.pacing.note(self.current.loss, self.progress.step)
        self.progress.batches += 1

    def follow_learning(self) -> str:
        """Follow the losses of the batch that was trained last; return a warning if the training does not learn."""
        if self.current.loss is None or not self.has_two_losses:
            return ""
        return self.learning.note(self.current.loss, self.current.adversarial_loss, self.progress)

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
            if there is a ``batch``, with the batch of the pass.
        :param batch: the batch, as a dict, a tuple or list of fields, or one tensor. Only an attack with a ``fraction``
            below 1 needs it.
        :param accumulation_steps: how many batches make an optimizer step, for ``start``, ``every`` and ``warmup``.
        :param total_steps: the optimizer steps of the training, for ``start`` and ``warmup`` as fractions of it.
        :return: the loss of the first pass that trains, detached.
        """

        def forward(each: Pass) -> Tensor:
            return run_closure(closure, *(() if batch is None else (each.of(batch),)))

        how: dict[str, Any] = {"accumulation_steps": accumulation_steps, "total_steps": total_steps}
        with named_reuse():
            return self.drive(forward, lambda loss, each: loss.backward(), batch, **how)

    @contextmanager
    def running(
        self, batch: Any = None, *, accumulation_steps: int = 1, total_steps: float | None = None
    ) -> Iterator[Iterator[Pass]]:
        """
        Yield the passes of one step, for loops that run them on their own; the model is unperturbed afterwards, also
        after an exception. Where ``start`` or ``every`` leaves the method out, there is one plain pass. For the
        arguments see :meth:`step`.
        """
        self.progress.begin_batch(accumulation_steps, total_steps)
        with closing(self._prepared(batch)) as passes:
            yield passes
        self._count_batch()
        self._log()

    def follow_epoch(self) -> tuple[str, str]:
        """Return a line on ``warmup="auto"``, and a warning if the training does not learn, at the end of an epoch."""
        auto = self.warmup == "auto"
        line = self.pacing.describe(type(self).__name__, self.names()[0]) if auto else ""
        return line, self.learning.check(self.progress) if self.has_two_losses else ""

    def _log(self) -> None:
        """Log the lines that a callback logs in a Trainer."""
        self.describe_once()
        say("", self.follow_learning())

    def choose(self, examples: int) -> Tensor:
        """Draw ``round(fraction * examples)`` rows, at least one; ascending, for sequences sorted by length."""
        number = max(1, round(self.fraction * examples))  # on the CPU, so that they are the same everywhere
        return torch.randperm(examples, generator=self.choice.on(torch.device("cpu")))[:number].sort().values

    def _part_of(self, batch: Any) -> tuple[Part | None, Any]:
        """Return the attacked rows, ``None`` if they are all, and a batch of these."""
        if batch is None:
            raise ValueError(
                f"Expected the batch, since `fraction={self.fraction}` attacks some of its examples, but got None. Use "
                "`step(closure, batch)`, whose closure receives the batch of the pass, or `fraction=1`."
            )
        examples = count_examples(batch, _WHOLE)
        part = Part(self.choose(examples), examples)
        if len(part) == examples:
            return None, batch
        # a loss that is divided by a count of the whole batch is a mean over the part
        return part, scale_counts(take_part(batch, part, _WHOLE), len(part) / examples)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.is_unattached:
            return state
        own: dict[str, Any] = {"choice": self.choice, "learning": self.learning, "pacing": self.pacing}
        return {**state, **{name: part.state_dict() for name, part in own.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.is_unattached:
            return
        for name in ("choice", "learning"):
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        if "pacing" in state:
            self.pacing.load_state_dict(state["pacing"], next(self.attached.parameters()).device)

    def record(self, moved: list[list[Delta]]) -> None:
        """Take the norms of each tap's perturbations and gradients, and count gradients that had no direction."""
        grads, values = [], []
        without: Any = self.norms.get("skipped", 0)
        for deltas in moved:
            if not deltas:  # the batch does not use this embedding
                self.without_grad += 1
                continue
            peaks = []
            for delta in deltas:
                wide = torch.promote_types(delta.grad.dtype, torch.float32)
                grads.append(torch.linalg.vector_norm(delta.grad, dtype=wide))
                values.append(torch.linalg.vector_norm(delta.value, dtype=wide))
                peaks.append(delta.grad.abs().amax() if delta.grad.numel() else grads[-1])
            peak = peaks[0] if len(peaks) == 1 else torch.stack(peaks).amax()
            without = without + ~(peak.isfinite() & (peak > 0))
        if grads:
            several = len(grads) > 1
            self.norms["grad"] = torch.linalg.vector_norm(torch.stack(grads)) if several else grads[0]
            self.norms["perturbation"] = torch.linalg.vector_norm(torch.stack(values)) if several else values[0]
            self.norms["skipped"] = without


def measured(attack: Attack | None, regularizers: Iterable[Method], divisor: float, scaler: Any) -> dict[str, Any]:
    """
    Return the norms of an attack that acted, and how many directions were missing so far; for trainers.

    :param regularizers: those that acted.
    :param divisor: divides a loss before its backward pass; the norm is the gradient norm of the undivided loss.
    """
    acts = attack is not None and attack.current.acts
    skipped: Tensor | int = attack.skipped if attack is not None and acts else 0
    for method in regularizers:
        skipped = skipped + method.without_grad
    if attack is None or not acts:
        return {"skipped": skipped} if skipped else {}
    values: dict[str, Any] = {"skipped": skipped}
    if attack.norms:
        scale = getattr(scaler, "_scale", None)  # the tensor, since `get_scale()` would wait for the device
        values["grad_norm"] = attack.norms["grad"] * (divisor if scale is None else divisor / scale)
        values["perturbation_norm"] = attack.norms["perturbation"]
    return values
