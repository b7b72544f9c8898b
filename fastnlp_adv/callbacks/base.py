"""What all callbacks share: each owns one unattached method, and attaches it to the model of a training."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec

from fastNLP import Callback, logger
from torch import nn

from ..attacks import Attack
from ..method import Method
from ..options import check_assignment, unknown, with_options
from ..regularizers import Regularizer
from ..schedule import Growing
from ..versions import has_compiled_parts
from .checks import check_trainer
from .step import BatchStep, tell_progress

__all__ = ["AttackCallback", "MethodCallback", "RegularizerCallback", "takes"]

_P = ParamSpec("_P")


def takes(
    method_class: Callable[Concatenate[nn.Module | None, _P], Method],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """
    Give a callback's ``__init__`` the signature of its method, without the model.

    :param method_class: the class of the method.
    """

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, _P], None]:
        own, (_, *others) = _parameters(init)[:1], _parameters(method_class)
        init.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
        return init

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


class MethodCallback(Callback):
    """
    A method that takes part in the batch step. Its method, in ``method``, is attached to the model when training begins
    and detached when it ends. Arguments are the method's: they can be read and assigned on the callback, and hold from
    the next batch on.

    :raises ValueError: if an argument is out of range.
    :raises TypeError: if there is no such argument.
    """

    #: the class of the method
    method_class: ClassVar[type[Method]]
    method: Method

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__doc__ and "method_class" in vars(cls):
            cls.__doc__ = with_options(cls.__doc__, cls.method_class)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name in kwargs:
            if name not in self.method_class.names():
                raise TypeError(unknown(type(self), self.method_class.names(), name))
        self.method = self.method_class(None, *args, **kwargs)
        #: the Trainer whose training the method remembers, and whether it runs
        self._trainer: weakref.ref[Any] | None = None
        self._is_running = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arguments."""
        return cls.method_class.names()

    def values(self) -> dict[str, Any]:
        """Return the arguments by name."""
        return self.method.values()

    def __getattr__(self, name: str) -> Any:
        if name in self.method_class.names() and "method" in vars(self):
            return getattr(self.method, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            names = self.method_class.names()
            if name in names:
                setattr(self.method, name, value)
                return
            if "method" in vars(self):
                check_assignment(self, names, name)
            super().__setattr__(name, value)

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        check_trainer(trainer, driver, self)
        self.check_model(driver.unwrap_model())

    def on_train_begin(self, trainer: Any) -> None:
        check_trainer(trainer, trainer.driver, self)
        self._check_free(trainer)
        self.begin(trainer)
        # before those of other callbacks, one of which may raise
        ends = trainer.callback_manager.callback_fns["on_train_end"]
        ends.sort(key=lambda each: not isinstance(getattr(each, "__self__", None), MethodCallback))
        BatchStep.install(trainer, self)

    def on_train_end(self, trainer: Any) -> None:
        if self._trainer is None or self._trainer() is trainer:
            BatchStep.uninstall(trainer, self)
            self.end(trainer)

    def on_save_checkpoint(self, trainer: Any) -> dict[str, Any]:
        return self.method.state_dict() if self._is_of(trainer) else {}

    def on_load_checkpoint(self, trainer: Any, states: dict[str, Any] | None) -> None:
        if states:
            self.method.forget().load_state_dict(states)
            self._trainer = weakref.ref(trainer)

    def check_model(self, model: nn.Module) -> None:
        """Check when the Trainer is built what would otherwise fail in training."""
        self.method.check_model(model)

    def begin(self, trainer: Any) -> None:
        """Attach the method, which goes on where a checkpoint, or an earlier run of this Trainer, left it."""
        if not self._is_of(trainer):
            self.method.forget()  # another Trainer has other examples
        model = trainer.driver.unwrap_model()
        self._trainer, self._is_running = weakref.ref(trainer), True
        self.method.detach().attach(model)
        self.method.close()  # hooks are on during a step only
        tell_progress(self.method, trainer)
        self._check_begins()
        (line, warning), self.method.opening = self.method.opening, ("", "")
        if line:
            self._say(trainer, line + self._described_growth())
        if warning:
            logger.rank_zero_warning(warning)
        if has_compiled_parts(model):
            self.method.open()  # compiled graphs do not notice hooks that come later: these stay while it trains

    def end(self, trainer: Any) -> None:
        """Detach the method, which remembers its state for another run."""
        self.method.detach()
        self._is_running = False

    def _is_of(self, trainer: Any) -> bool:
        return self._trainer is not None and self._trainer() is trainer

    def _check_free(self, trainer: Any) -> None:
        other = None if self._trainer is None else self._trainer()
        if other is None or other is trainer or not self._is_running:
            return
        step = other.train_batch_loop.batch_step_fn
        if isinstance(step, BatchStep) and self in step.callbacks:
            raise ValueError(
                f"Expected {type(self).__name__} to train one Trainer at a time, but got a second one while the first "
                "is running. Give each Trainer a callback of its own."
            )

    def _check_begins(self) -> None:
        method, progress = self.method, self.method.progress
        steps, first = int(progress.total_steps or 0), method.first_step(progress)
        growing = method.growing_steps(progress) if isinstance(method, Growing) else 0.0
        if 0 < steps <= first:
            logger.rank_zero_warning(
                f"Expected `start` to be within the training of {steps} optimizer steps, but got {method.start}: "
                f"{type(self).__name__} will never act. Give a smaller one, or a fraction of the training below 1.",
                once=True,
            )
        elif isinstance(method, Growing) and 0 < steps - first < int(growing):
            logger.rank_zero_warning(
                f"Expected `warmup` to end within the training of {steps} optimizer steps, but got {method.warmup}: "
                f"{type(self).__name__} will only reach {(steps - first) / growing:.2g} of its perturbation. Give a "
                "smaller one, or a fraction of the training, at most 1.0.",
                once=True,
            )

    def _described_growth(self) -> str:
        method = self.method
        if not isinstance(method, Growing) or not method.warmup:
            return ""
        if method.warmup == "auto":
            return ", growing to that as the loss falls"
        return f", growing to that over {method.growing_steps(method.progress):.4g} optimizer steps"

    def _say(self, trainer: Any, line: str) -> None:
        if trainer.driver.global_rank == 0:
            logger.info(line)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None, "_is_running": False}  # which name a Trainer of this process


class AttackCallback(MethodCallback):
    """Trains under an attack. A Trainer takes at most one."""

    method_class: ClassVar[type[Attack]]
    method: Attack

    def on_train_batch_end(self, trainer: Any) -> None:
        if warning := self.method.follow_learning():
            logger.rank_zero_warning(warning)

    def on_train_epoch_end(self, trainer: Any) -> None:
        if self.method.has_two_losses and (warning := self.method.learning.check(self.method.progress)):
            logger.rank_zero_warning(warning)
        if self.method.warmup == "auto":
            line = self.method.pacing.describe(type(self.method).__name__, self.method.names()[0])
            self._say(trainer, line)


class RegularizerCallback(MethodCallback):
    """Trains with a regularizer. Different ones combine, with each other and with an attack."""

    method_class: ClassVar[type[Regularizer]]
    method: Regularizer
