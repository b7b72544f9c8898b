"""What all callbacks share: their arguments, their checks, when they are due, and what a checkpoint holds of them."""

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
    :param arguments: those of the method, kept as attributes of the same names.
    :raises ValueError: if an argument is out of range.
    """

    #: the method, built anew on the model whenever a training begins
    method_class: ClassVar[type]
    method_: Any = None

    def __init__(self, *, start: int | float = 0, every: int = 1, log_every: int = 0, **arguments: Any):
        super().__init__()
        check_number("start", start)
        check_count("every", every)
        check_count("log_every", log_every, least=0)
        self.method_class.check(**arguments)  # type: ignore[attr-defined]
        self.start = start
        self.every = every
        self.log_every = log_every
        self._arguments = tuple(arguments)
        self._resumed: dict[str, Any] | None = None
        for name, value in arguments.items():
            setattr(self, name, value)

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        check_trainer(trainer, driver, self)
        self.check_model(driver.unwrap_model())

    def on_train_begin(self, trainer: Any) -> None:
        check_trainer(trainer, trainer.driver, self)
        self.begin(trainer)
        install(trainer).add(self)

    def on_train_batch_end(self, trainer: Any) -> None:
        if self.log_every and trainer.global_forward_batches % self.log_every == 0:
            log_state(trainer)

    def on_train_end(self, trainer: Any) -> None:
        uninstall(trainer, self)
        self.end()

    def on_save_checkpoint(self, trainer: Any) -> dict[str, Any]:
        return {} if self.method_ is None else self.method_.state_dict()

    def on_load_checkpoint(self, trainer: Any, states: dict[str, Any] | None) -> None:
        self._resumed = states or None

    def due(self, trainer: Any) -> bool:
        """Whether the method acts on this batch. Counts optimizer steps: the micro-batches of one are treated alike."""
        step = trainer.global_forward_batches // trainer.accumulation_steps
        total = trainer.n_batches / trainer.accumulation_steps
        start = self.start * total if self.start < 1 else self.start
        return step >= start and int(step - start) % self.every == 0

    def build(self, model: nn.Module) -> Any:
        """The method with this callback's settings, with its hooks off."""
        method = self.method_class(model, **self.settings())
        method.close()
        return method

    def settings(self) -> dict[str, Any]:
        """The arguments of the method, as they are now."""
        return {name: getattr(self, name) for name in self._arguments}

    def check_model(self, model: nn.Module) -> None:
        """Check when the Trainer is built what would otherwise fail in training."""
        self.build(model)

    def begin(self, trainer: Any) -> None:
        """Build the method, and go on where a checkpoint left it."""
        model = trainer.driver.unwrap_model()
        self.method_ = self.build(model)
        if self._resumed is not None:
            self.method_.load_state_dict(self._resumed)
            self._resumed = None
        if _is_compiled(model):  # its graphs do not notice hooks that come later, so these stay for the whole training
            self.method_.open()

    def end(self) -> None:
        """Let go of the method."""
        if self.method_ is not None:
            self.method_.close()
        self.method_ = None


class AttackCallback(MethodCallback):
    """
    Trains under an attack. At most one a Trainer.

    :param start: see :class:`MethodCallback`.
    :param every: see :class:`MethodCallback`.
    :param log_every: see :class:`MethodCallback`.
    :param arguments: those of the attack.
    """

    method_class: ClassVar[type[Attack]]


def _is_compiled(model: nn.Module) -> bool:
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
