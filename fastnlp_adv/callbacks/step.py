"""The batch step: what the Trainer does with a batch while one of this package's callbacks is there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from .. import forwards
from ..attacks import Attack, Pass
from ..method import Method
from ..regularizers import RDrop, Regularizer
from ..regularizers.terms import noting

__all__ = ["BatchStep", "Participant", "install", "uninstall"]


class Participant(Protocol):
    """A callback, as the step sees it."""

    method_: Method | None

    def due(self, trainer: Any) -> bool:
        """Whether its method acts on this batch."""

    def refresh(self) -> None:
        """Hand arguments that were assigned since the last batch on to the method."""


class BatchStep:
    """
    Replaces ``TrainBatchLoop.batch_step_fn``. One object serves all callbacks of a Trainer, whatever their order.

    :param original: the function to put back when the last callback leaves.
    """

    def __init__(self, original: Callable):
        self.original = original
        self.callbacks: list[Participant] = []

    def add(self, callback: Participant) -> None:
        if callback not in self.callbacks:
            self.callbacks.append(callback)

    def __call__(self, trainer: Any, batch: Any) -> None:
        for callback in self.callbacks:
            callback.refresh()
        methods = [callback.method_ for callback in self.callbacks]
        due = [callback.method_ for callback in self.callbacks if callback.due(trainer)]
        regularizers = [method for method in due if isinstance(method, Regularizer)]
        # a model with R-Drop of its own is run as RDropCallback says, also where that is "not now"
        bare = any(isinstance(method, RDrop) and method not in due for method in methods)
        run = _Run(trainer, _objective(trainer, regularizers, bare), batch)
        run.under_all(regularizers, next((method for method in due if isinstance(method, Attack)), None))
        trainer.step()
        trainer.zero_grad()


def _objective(trainer: Any, regularizers: list[Regularizer], bare: bool) -> Callable[[Any], Any]:
    """Return the training step, wrapped by each regularizer."""
    no_sync = trainer.driver.get_model_no_sync_context()

    def train_step(batch: Any) -> Any:
        forward = forwards.current()
        with nullcontext() if forward is None or forward.last else no_sync():
            return trainer.train_step(batch)

    objective: Callable[[Any], Any] = partial(forwards.run, train_step, bare=True) if bare else train_step
    for regularizer in sorted(regularizers, key=lambda each: (not each.innermost, each.name)):
        objective = partial(regularizer, objective, forward=train_step)
    return objective


class _Run:
    """One batch on its way through the passes."""

    def __init__(self, trainer: Any, objective: Callable[[Any], Any], batch: Any):
        self.trainer = trainer
        self.objective = objective
        self.batch = batch
        self.hooks_are_due = True
        self.noted = False
        self.state = trainer.state.setdefault("adv", {})

    def under_all(self, regularizers: list[Regularizer], attack: Attack | None) -> None:
        with ExitStack() as running:
            for regularizer in regularizers:
                running.enter_context(regularizer.running())
            if attack is None:
                self.train(self.forward(self.batch), Pass(last=True))
            else:
                self.under(attack)
        methods = [*regularizers, *([] if attack is None else [attack])]
        if any(method.taps for method in methods):
            self.state["skipped"] = sum(method.skipped for method in methods)

    def under(self, attack: Attack) -> None:
        with attack.running() as passes:
            for each in passes:
                if each.only_reduces and not self.trainer.driver.is_distributed():
                    break
                with nullcontext() if each.last else self.trainer.driver.get_model_no_sync_context()():
                    batch = copy.copy(self.batch) if isinstance(self.batch, Mapping) else self.batch
                    with attack.precision(each):
                        outputs = self.forward(batch)
                    if each.trains:
                        self.train(outputs, each)
                    else:
                        self.note(outputs, each)
                        attack.differentiate(self.trainer.driver.grad_scaler.scale(self.loss(outputs)))
        self.record(attack)

    def forward(self, batch: Any) -> Any:
        if self.noted:
            return self.objective(batch)
        with noting() as terms:  # of the first pass, which most often is the clean one
            outputs = self.objective(batch)
        self.state.update(terms)
        self.noted = True
        return outputs

    def loss(self, outputs: Any) -> Tensor:
        return self.trainer.extract_loss_from_outputs(outputs) / self.trainer.accumulation_steps

    def train(self, outputs: Any, each: Pass) -> None:
        """As ``trainer.backward``, but the hooks fire in the first pass of a batch only."""
        fire, self.hooks_are_due = self.hooks_are_due, False
        if fire:
            self.trainer.on_before_backward(outputs)
        self.note(outputs, each)
        self.trainer.driver.backward(each.weigh(self.loss(outputs)))
        if fire:
            self.trainer.on_after_backward()

    def note(self, outputs: Any, each: Pass) -> None:
        loss = self.trainer.extract_loss_from_outputs(outputs)
        self.state["adv_loss" if each.adversarial else "loss"] = loss.detach()

    def record(self, attack: Attack) -> None:
        if attack.grad_norm is not None:
            # the tensor, since `get_scale()` would wait for the device
            scale = getattr(self.trainer.driver.grad_scaler, "_scale", None)
            unit = self.trainer.accumulation_steps if scale is None else self.trainer.accumulation_steps / scale
            self.state["grad_norm"] = attack.grad_norm * unit
            self.state["perturbation_norm"] = attack.perturbation_norm


def install(trainer: Any) -> BatchStep:
    """
    Put the step into a Trainer, unless it is there.

    :param trainer: the Trainer.
    :return: the step.
    """
    loop = trainer.train_batch_loop
    if not isinstance(loop.batch_step_fn, BatchStep):
        loop.batch_step_fn = BatchStep(loop.batch_step_fn)
    return loop.batch_step_fn


def uninstall(trainer: Any, callback: Participant) -> None:
    """
    Take a callback out of the step, and with the last one the step off the Trainer.

    :param trainer: the Trainer.
    :param callback: the callback; nothing happens if it is not in the step.
    """
    step = getattr(trainer.train_batch_loop, "batch_step_fn", None)
    if isinstance(step, BatchStep):
        step.callbacks = [other for other in step.callbacks if other is not callback]
        if not step.callbacks:
            trainer.train_batch_loop.batch_step_fn = step.original
