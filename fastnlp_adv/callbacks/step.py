"""The batch step of a Trainer with callbacks of this package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

from fastNLP.core.drivers.torch_driver import TorchFSDPDriver
from torch import Tensor

from ..attacks import Attack, Pass
from ..attacks.base import measured
from ..method import Method
from ..regularizers import RDropMixin, Regularizer
from ..regularizers.base import nesting, regularized


def tell_progress(method: Method, trainer: Any) -> None:
    """Set the method's progress to the Trainer's."""
    progress = method.progress
    progress.batches, progress.accumulation_steps = trainer.global_forward_batches, trainer.accumulation_steps
    progress.total_steps = trainer.n_batches / trainer.accumulation_steps


class BatchStep:
    """Replaces ``TrainBatchLoop.batch_step_fn``. One object serves all methods of a Trainer."""

    def __init__(self, original: Callable[..., Any], has_terms: bool):
        self.original = original
        self.has_terms = has_terms  # also without a regularizer, if the model itself runs R-Drop
        self.methods: list[Method] = []

    def __call__(self, trainer: Any, batch: Any) -> None:
        attack: Attack | None = None
        regularizers: list[Regularizer] = []
        for method in self.methods:
            tell_progress(method, trainer)
            if isinstance(method, Attack):
                attack = method
            elif isinstance(method, Regularizer):
                regularizers.append(method)
        with ExitStack() as stack:
            objective: Callable[[Any], Any] = trainer.train_step
            acting: list[Regularizer] = []
            terms: dict[str, Tensor] = {}
            if regularizers or self.has_terms:
                no_sync = trainer.driver.get_model_no_sync_context()
                objective, acting, terms = regularized(objective, regularizers, no_sync, stack)
            _train(trainer, batch, objective, attack, terms)
        scaler = trainer.driver.grad_scaler
        trainer.state["adv"].update(measured(attack, acting, trainer.accumulation_steps, scaler))
        trainer.step()
        trainer.zero_grad()

    @staticmethod
    def install(trainer: Any, method: Method) -> None:
        """Put the step into a Trainer, unless it is there, and the method into the step."""
        loop = trainer.train_batch_loop
        if not isinstance(loop.batch_step_fn, BatchStep):
            modules = trainer.driver.unwrap_model().modules()
            has_terms = any(isinstance(module, RDropMixin) for module in modules)
            loop.batch_step_fn = BatchStep(loop.batch_step_fn, has_terms)
            if isinstance(trainer.driver, TorchFSDPDriver):
                # Without synchronization each rank would keep the gradients of the whole model, and an inner pass that
                # comes after it fails. Every pass that trains reduces, as do the micro-batches that are accumulated.
                trainer.driver.get_model_no_sync_context = lambda: nullcontext
        if method not in loop.batch_step_fn.methods:
            loop.batch_step_fn.methods.append(method)
            loop.batch_step_fn.methods.sort(key=nesting)

    @staticmethod
    def uninstall(trainer: Any, method: Method) -> None:
        """Take a method out of the step, if it is in it, and with the last one the step off the Trainer."""
        step = getattr(trainer.train_batch_loop, "batch_step_fn", None)
        if isinstance(step, BatchStep):
            step.methods = [other for other in step.methods if other is not method]
            if not step.methods:
                trainer.train_batch_loop.batch_step_fn = step.original
                if isinstance(trainer.driver, TorchFSDPDriver):
                    vars(trainer.driver).pop("get_model_no_sync_context", None)


def _train(
    trainer: Any, batch: Any, objective: Callable[[Any], Any], attack: Attack | None, terms: dict[str, Tensor]
) -> None:
    """Run the passes of a batch, with fastNLP's hooks around the first backward pass that trains."""
    driver, accumulation_steps = trainer.driver, trainer.accumulation_steps
    state = trainer.state.setdefault("adv", {})
    hooks_are_due = True

    def forward(each: Pass) -> Tensor:
        outputs = objective(each.of(batch))
        state.update(terms)
        if each.trains and hooks_are_due:
            trainer.on_before_backward(outputs)
        loss: Tensor = trainer.extract_loss_from_outputs(outputs)
        state["adv_loss" if each.adversarial else "loss"] = loss.detach()
        return loss

    def backward(loss: Tensor, each: Pass) -> None:
        nonlocal hooks_are_due
        driver.backward(loss / accumulation_steps)
        if hooks_are_due:
            hooks_are_due = False
            trainer.on_after_backward()

    if attack is None:
        each = Pass(last=True)
        backward(forward(each), each)
        return
    attack.run_passes(
        forward,
        backward,
        batch,
        no_sync=driver.get_model_no_sync_context(),
        scale=lambda loss: driver.grad_scaler.scale(loss / accumulation_steps),
        reduces=driver.is_distributed(),
    )
