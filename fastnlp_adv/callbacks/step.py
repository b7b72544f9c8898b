"""The batch step: what the Trainer does with a batch while one of this package's callbacks is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, Protocol

from fastNLP.core.drivers.torch_driver import TorchFSDPDriver
from torch import Tensor

from .. import forwards
from ..attacks import Attack, Pass
from ..method import Method
from ..regularizers import RDrop, RDropMixin, Regularizer
from ..regularizers.base import noting

__all__ = ["BatchStep", "Participant"]


class Participant(Protocol):
    """A callback, as the step sees it."""

    method: Method

    def tell_progress(self, trainer: Any) -> None:
        """Tell the method where the training stands."""


class BatchStep:
    """
    Replaces ``TrainBatchLoop.batch_step_fn``. One object serves all callbacks of a Trainer, whatever their order.

    :param original: the function to put back when the last callback leaves.
    :param has_terms: whether the model runs R-Drop by itself, so that there are terms without a regularizer.
    """

    def __init__(self, original: Callable[..., Any], has_terms: bool):
        self.original = original
        self.has_terms = has_terms
        self.callbacks: list[Participant] = []

    def __call__(self, trainer: Any, batch: Any) -> None:
        for callback in self.callbacks:
            callback.tell_progress(trainer)
        methods = [callback.method for callback in self.callbacks]
        attack = next((method for method in methods if isinstance(method, Attack)), None)
        found = [method for method in methods if isinstance(method, Regularizer)]
        regularizers = [method for method in found if method.is_due(method.progress)]
        # a model with R-Drop of its own runs as RDropCallback tells it, also where that is "not now"
        bare = any(isinstance(method, RDrop) and method not in regularizers for method in found)
        objective = trainer.train_step if not regularizers and not bare else _objective(trainer, regularizers, bare)
        run = _Run(trainer, objective, batch, has_terms=self.has_terms or bool(regularizers))
        with ExitStack() as running:
            for regularizer in regularizers:
                running.enter_context(regularizer.running())
            if attack is None:
                run.train(run.forward(batch), Pass(last=True))
            else:
                run.under(attack)
        acted = attack is not None and attack.acts
        skipped = attack.skipped if attack is not None and acted else 0
        for regularizer in regularizers:
            skipped = skipped + regularizer.without_grad
        if acted or skipped:
            run.state["skipped"] = skipped
        trainer.step()
        trainer.zero_grad()

    @staticmethod
    def install(trainer: Any, callback: Participant) -> None:
        """Put the step into a Trainer, unless it is there, and the callback into the step."""
        loop = trainer.train_batch_loop
        if not isinstance(loop.batch_step_fn, BatchStep):
            modules = trainer.driver.unwrap_model().modules()
            has_terms = any(isinstance(module, RDropMixin) for module in modules)
            loop.batch_step_fn = BatchStep(loop.batch_step_fn, has_terms)
            if isinstance(trainer.driver, TorchFSDPDriver):
                # Without synchronization each rank would keep the gradients of the whole model, and an inner pass that
                # comes after it fails. Every pass that trains reduces, as do the micro-batches that are accumulated.
                trainer.driver.get_model_no_sync_context = lambda: nullcontext
        if callback not in loop.batch_step_fn.callbacks:
            loop.batch_step_fn.callbacks.append(callback)

    @staticmethod
    def uninstall(trainer: Any, callback: Participant) -> None:
        """Take a callback out of the step, if it is in it, and with the last one the step off the Trainer."""
        step = getattr(trainer.train_batch_loop, "batch_step_fn", None)
        if isinstance(step, BatchStep):
            step.callbacks = [other for other in step.callbacks if other is not callback]
            if not step.callbacks:
                trainer.train_batch_loop.batch_step_fn = step.original
                if isinstance(trainer.driver, TorchFSDPDriver):
                    vars(trainer.driver).pop("get_model_no_sync_context", None)


def _objective(trainer: Any, regularizers: list[Regularizer], bare: bool) -> Callable[[Any], Any]:
    """Return the training step, wrapped by each regularizer."""
    no_sync = trainer.driver.get_model_no_sync_context()

    def train_step(batch: Any) -> Any:
        forward = forwards.running.forward
        with nullcontext() if forward is None or forward.last else no_sync():
            return trainer.train_step(batch)

    objective: Callable[[Any], Any] = partial(forwards.run, train_step, bare=True) if bare else train_step
    for regularizer in sorted(regularizers, key=lambda each: (not each.innermost, each.name)):
        objective = partial(_regularized, regularizer, objective, train_step)
    return objective


def _regularized(regularizer: Regularizer, objective: Callable[[Any], Any], forward: Any, batch: Any) -> dict[str, Any]:
    return regularizer.regularize(objective, batch, forward)


class _Run:
    """One batch on its way through the passes."""

    def __init__(self, trainer: Any, objective: Callable[[Any], Any], batch: Any, *, has_terms: bool):
        self.trainer = trainer
        self.objective = objective
        self.batch = batch
        self.terms_are_due = has_terms
        self.hooks_are_due = True
        self.attack: Attack | None = None
        self.state = trainer.state.setdefault("adv", {})

    def under(self, attack: Attack) -> None:
        driver = self.trainer.driver
        self.attack = attack
        with attack.driven(self.batch) as passes:
            for each in passes:
                if each.only_reduces and not driver.is_distributed():
                    break
                with nullcontext() if each.last else driver.get_model_no_sync_context()():
                    with nullcontext() if each.trains else attack.precision():
                        outputs = self.forward(each.of(self.batch))
                    if each.trains:
                        self.train(outputs, each)
                    else:
                        attack.differentiate(driver.grad_scaler.scale(self.loss(outputs, each)))
        if attack.norms and attack.acts:
            # the tensor, since `get_scale()` would wait for the device
            scale = getattr(driver.grad_scaler, "_scale", None)
            unit = self.trainer.accumulation_steps if scale is None else self.trainer.accumulation_steps / scale
            self.state["grad_norm"] = attack.norms["grad"] * unit
            self.state["perturbation_norm"] = attack.norms["perturbation"]

    def forward(self, batch: Any) -> Any:
        if not self.terms_are_due:
            return self.objective(batch)
        with noting() as terms:  # of the first pass, which most often is the clean one
            outputs = self.objective(batch)
        self.state.update(terms)
        self.terms_are_due = False
        return outputs

    def train(self, outputs: Any, each: Pass) -> None:
        """Run a backward pass as ``trainer.backward`` does, but fire its hooks in the first pass of a batch only."""
        fire, self.hooks_are_due = self.hooks_are_due, False
        if fire:
            self.trainer.on_before_backward(outputs)
        loss = self.loss(outputs, each)
        self.trainer.driver.backward(loss if each.weight == 1 else loss * each.weight)
        if fire:
            self.trainer.on_after_backward()

    def loss(self, outputs: Any, each: Pass) -> Tensor:
        loss = self.trainer.extract_loss_from_outputs(outputs)
        self.state["adv_loss" if each.adversarial else "loss"] = value = loss.detach()
        if self.attack is not None:
            self.attack.observe(value, each)
        return loss / self.trainer.accumulation_steps
