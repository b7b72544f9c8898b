"""The callbacks' common part: their arguments, their checks, and when they are due."""

from __future__ import annotations

from typing import Any, ClassVar

from fastNLP import Callback
from torch import nn

from ..attacks import Attack
from ..checks import check_count, check_number
from .checks import check_trainer
from .log import log_state
from .step import install, uninstall

__all__ = ["AttackCallback", "MethodCallback"]


class MethodCallback(Callback):
    """
    A method that takes part in the batch step. Installs the step when training begins and takes it off when it ends.

    :param start: optimizer steps of plain training before the method sets in, or, below 1, a fraction of the training.
    :param every: the method acts in one of this many optimizer steps.
    :param log_every: write ``trainer.state["adv"]`` to fastNLP's log every so many batches; 0 for never.
    :raises ValueError: if an argument is out of range.
    """

    def __init__(self, *, start: int | float = 0, every: int = 1, log_every: int = 0):
        super().__init__()
        check_number("start", start)
        check_count("every", every)
        check_count("log_every", log_every, least=0)
        self.start = start
        self.every = every
        self.log_every = log_every

    def on_after_trainer_initialized(self, trainer, driver):
        check_trainer(trainer, driver, self)
        self.check_model(driver.unwrap_model())

    def on_train_begin(self, trainer):
        check_trainer(trainer, trainer.driver, self)
        self.begin(trainer)
        install(trainer).add(self)

    def on_train_batch_end(self, trainer):
        if self.log_every and trainer.global_forward_batches % self.log_every == 0:
            log_state(trainer)

    def on_train_end(self, trainer):
        uninstall(trainer, self)
        self.end()

    def due(self, trainer: Any) -> bool:
        """Whether the method acts on this batch. Counts optimizer steps, so micro-batches of one step are treated alike."""
        step = trainer.global_forward_batches // trainer.accumulation_steps
        total = trainer.n_batches / trainer.accumulation_steps
        start = self.start * total if self.start < 1 else self.start
        return step >= start and int(step - start) % self.every == 0

    def check_model(self, model: nn.Module) -> None:
        """Check when the Trainer is built what would otherwise fail in training."""

    def begin(self, trainer: Any) -> None:
        """Build the run-time state."""

    def end(self) -> None:
        """Let go of the run-time state."""


class AttackCallback(MethodCallback):
    """
    Trains under an attack. At most one a Trainer.

    :param start: see :class:`MethodCallback`.
    :param every: see :class:`MethodCallback`.
    :param log_every: see :class:`MethodCallback`.
    :param arguments: those of the attack.
    """

    attack_class: ClassVar[type[Attack]]
    attack_: Attack | None = None

    def __init__(self, *, start: int | float = 0, every: int = 1, log_every: int = 0, **arguments: Any):
        super().__init__(start=start, every=every, log_every=log_every)
        self.attack_class.check(**arguments)
        self._arguments = tuple(arguments)
        vars(self).update(arguments)

    def build(self, model: nn.Module) -> Attack:
        """An attack on the model, with its hooks off."""
        attack = self.attack_class(model, **{name: getattr(self, name) for name in self._arguments})
        attack.close()
        return attack

    def check_model(self, model: nn.Module) -> None:
        self.build(model)

    def begin(self, trainer: Any) -> None:
        model = trainer.driver.unwrap_model()
        self.attack_ = self.build(model)
        if _is_compiled(model):  # its graphs do not notice hooks that come later, so these stay for the whole training
            self.attack_.open()

    def end(self) -> None:
        if self.attack_ is not None:
            self.attack_.close()
        self.attack_ = None


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
