"""The batch step: what the Trainer does with a batch while one of this package's callbacks is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..attacks import Attack, Pass
from ..regularizers import Regularizer

if TYPE_CHECKING:
    from .base import MethodCallback

__all__ = ["BatchStep", "install", "uninstall"]


class BatchStep:
    """
    Replaces ``TrainBatchLoop.batch_step_fn``. One object serves all callbacks of a Trainer, whatever their order.

    :param original: the function to put back when the last callback leaves.
    """

    def __init__(self, original: Callable):
        self.original = original
        self.callbacks: list[MethodCallback] = []

    def add(self, callback: MethodCallback) -> None:
        self.callbacks.append(callback)

    def __call__(self, trainer: Any, batch: Any) -> None:
        due = {callback: callback.due(trainer) for callback in self.callbacks}
        attacks = [c.method_ for c in self.callbacks if isinstance(c.method_, Attack) and due[c]]
        regularizers = [c for c in self.callbacks if isinstance(c.method_, Regularizer)]
        with ExitStack() as hooks:
            for callback in regularizers:
                if due[callback]:
                    hooks.enter_context(callback.method_.running())
            run = _Run(trainer, self._objective(trainer, regularizers, due), batch)
            run.terms.update(callback.method_.name for callback in regularizers)
            run.under(attacks[0]) if attacks else run.plain()
        trainer.step()
        trainer.zero_grad()

    def _objective(
        self, trainer: Any, regularizers: list[Any], due: dict[MethodCallback, bool]
    ) -> Callable[[Any], Any]:
        no_sync = trainer.driver.get_model_no_sync_context()
        objective = trainer.train_step
        for callback in sorted(regularizers, key=lambda c: (not c.method_.innermost, c.method_.name)):
            objective = callback.regularize(objective, trainer.train_step, due[callback], no_sync)
        return objective


class _Run:
    """One batch on its way through the passes."""

    def __init__(self, trainer: Any, objective: Callable[[Any], Any], batch: Any):
        self.trainer = trainer
        self.objective = objective
        self.batch = batch
        self.hooks_are_due = True
        self.noted = False
        self.terms = {"kl"}  # a model with RDropMixin has one without a callback
        self.state = trainer.state.setdefault("adv", {})

    def plain(self) -> None:
        self.train(self.objective(self.batch), Pass(last=True))

    def under(self, attack: Attack) -> None:
        with attack.running() as passes:
            for each in passes:
                with nullcontext() if each.last else self.trainer.driver.get_model_no_sync_context()():
                    with attack.precision(each):
                        outputs = self.objective(self.batch)
                    if each.trains:
                        self.train(outputs, each)
                    else:
                        self.note(outputs, each)
                        attack.differentiate(self.trainer.driver.grad_scaler.scale(self.loss(outputs)))
        self.record(attack)

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
        # the terms of the first pass, which most often is the clean one
        if not self.noted and isinstance(outputs, dict):
            self.state.update({name: outputs[name] for name in self.terms & outputs.keys()})
        self.noted = True

    def record(self, attack: Attack) -> None:
        # the tensor, since `get_scale()` would wait for the device
        scale = getattr(self.trainer.driver.grad_scaler, "_scale", None)
        unit = self.trainer.accumulation_steps if scale is None else self.trainer.accumulation_steps / scale
        self.state["grad_norm"] = attack.grad_norm * unit
        self.state["perturbation_norm"] = attack.perturbation_norm
        self.state["skipped"] = attack.skipped


def install(trainer: Any) -> BatchStep:
    """
    The step of a Trainer; put in place when it is not there yet.

    :param trainer: the Trainer.
    :return: the step.
    """
    loop = trainer.train_batch_loop
    if not isinstance(loop.batch_step_fn, BatchStep):
        loop.batch_step_fn = BatchStep(loop.batch_step_fn)
    return loop.batch_step_fn


def uninstall(trainer: Any, callback: MethodCallback) -> None:
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
