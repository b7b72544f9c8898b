"""What all callbacks share: when their method is due, its arguments while training goes on, and what outlives a run."""

from __future__ import annotations

import math
import weakref
from typing import Any, ClassVar, Optional, Type, cast

from fastNLP import Callback, logger
from torch import nn

from ..arguments import Arguments, argument, arguments, at_least
from ..arguments.shared import TwoPassArguments, warmup
from ..attacks import Attack, EmbeddingAttack
from ..method import Method, ModelMethod
from ..regularizers import Regularizer
from ..versions import has_compiled_parts
from .checks import check_trainer
from .learning import Learning
from .log import log_values, measured
from .step import BatchStep

__all__ = ["AttackCallback", "MethodCallback", "RegularizerCallback"]


@arguments
class MethodCallback(Callback, Arguments):
    """
    A method that takes part in the batch step. Installs the step when training begins and takes it off when it ends.
    Arguments can be assigned at any time, and hold from the next batch on.

    :arguments:
    :raises ValueError: if an argument is out of range.
    """

    #: the method, built anew on the model whenever a training begins
    method_class: ClassVar[Type[Method]]
    _positional: ClassVar[Optional[int]] = 1

    start: float = argument(
        0, "optimizer steps of plain training before the method sets in, or, below 1, a fraction of the training"
    )
    every: int = argument(1, "the method acts in one of this many optimizer steps")
    log_every: int = argument(
        0, 'write ``trainer.state["adv"]`` to fastNLP\'s log every so many batches; 0 for never', at_least(0)
    )

    # Without annotations, which would make arguments of them.
    warmup = cast(Any, 0)  # only attacks have it
    method_ = cast("Method | None", None)
    #: what the method remembered at the end of a run, and of which Trainer; what a checkpoint holds comes before it
    _kept = cast("tuple[weakref.ref[Any], dict[str, Any]] | None", None)
    _resumed = cast("dict[str, Any] | None", None)
    _running = cast("weakref.ref[Any] | None", None)

    def __post_init__(self) -> None:
        Callback.__init__(self)
        Arguments.__post_init__(self)
        self.assigned: dict[str, None] = {}

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        check_trainer(trainer, driver, self)
        self.check_model(driver.unwrap_model())

    def on_train_begin(self, trainer: Any) -> None:
        check_trainer(trainer, trainer.driver, self)
        self._check_free(trainer)
        self._check_begins(trainer)
        self.begin(trainer)
        # before those of other callbacks, one of which may raise
        ends = trainer.callback_manager.callback_fns["on_train_end"]
        ends.sort(key=lambda each: not isinstance(getattr(each, "__self__", None), MethodCallback))
        self._running = weakref.ref(trainer)
        BatchStep.install(trainer, self)

    def on_train_batch_end(self, trainer: Any) -> None:
        if self.log_every and trainer.global_forward_batches % self.log_every == 0 and trainer.driver.global_rank == 0:
            log_values(trainer, measured(trainer))

    def on_train_end(self, trainer: Any) -> None:
        if self._running is None or self._running() is trainer:
            BatchStep.uninstall(trainer, self)
            self.end(trainer)

    def on_save_checkpoint(self, trainer: Any) -> dict[str, Any]:
        if self.method_ is not None:
            return self.state_dict()
        return self._resumed or self._kept_of(trainer) or {}

    def on_load_checkpoint(self, trainer: Any, states: dict[str, Any] | None) -> None:
        self._resumed = states or None

    def strength(self, trainer: Any) -> float:
        """
        Return the factor of what the method perturbs by on this batch: 0 where it does not act, and what grows to 1
        over ``warmup``. Counts optimizer steps: the micro-batches of one are treated alike.
        """
        first, growing = self._schedule(trainer)
        step = trainer.global_forward_batches // trainer.accumulation_steps - first
        if step < 0 or step % self.every:
            return 0.0
        return (step + 1) / growing if step + 1 < growing else 1.0  # at 0 the first step would run for nothing

    def refresh(self) -> None:
        """Hand arguments that were assigned since the last batch on to the method."""
        names = [name for name in self.assigned if name in self.method_class.names()]
        self.assigned = {}
        if self.method_ is None or not names:
            return
        if self.method_.fixed.isdisjoint(names):
            for name in names:
                setattr(self.method_, name, getattr(self, name))
        else:
            old, self.method_ = self.method_, self.build(cast(ModelMethod, self.method_).model)
            self.method_.load_state_dict(old.state_dict())

    def changed(self, name: str) -> None:
        self.assigned[name] = None

    def build(self, model: nn.Module) -> Method:
        """Build the method with this callback's settings, with its hooks off."""
        method = self.method_class(model, **self.settings())  # type: ignore[call-arg]
        method.close()
        return method

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the method, as they are now."""
        return {name: getattr(self, name) for name in self.method_class.names()}

    def check_model(self, model: nn.Module) -> None:
        """Check when the Trainer is built what would otherwise fail in training."""
        self.build(model)

    def begin(self, trainer: Any) -> None:
        """Build the method, and go on where a checkpoint, or an earlier run of this Trainer, left it."""
        model = trainer.driver.unwrap_model()
        self.method_ = self.build(model)
        self.assigned = {}
        remembered = self._resumed or self._kept_of(trainer)
        if remembered:
            self.load_state_dict(remembered)
        self._resumed = self._kept = None
        line = self.method_.describe()
        if line and self.warmup:
            line += f", growing to that over {self._schedule(trainer)[1]:.4g} optimizer steps"
        if line and trainer.driver.global_rank == 0:
            logger.info(line)
        if isinstance(self.method_, EmbeddingAttack) and not self.warmup and (warning := self.method_.warn_of_size()):
            logger.rank_zero_warning(warning)
        if has_compiled_parts(model):
            self.method_.open()  # compiled graphs do not notice hooks that come later: these stay while it trains

    def end(self, trainer: Any) -> None:
        """Let go of the method, but for what it remembers."""
        if self.method_ is not None:
            self._kept = weakref.ref(trainer), self.state_dict()
            self.method_.close()
        self.method_ = self._running = None

    def state_dict(self) -> dict[str, Any]:
        """Return what outlives a run: what the method remembers."""
        return cast(Method, self.method_).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        cast(Method, self.method_).load_state_dict(state)

    def _kept_of(self, trainer: Any) -> dict[str, Any] | None:
        """Return what an earlier run of this Trainer left; another one has other examples."""
        return self._kept[1] if self._kept is not None and self._kept[0]() is trainer else None

    def _check_free(self, trainer: Any) -> None:
        other = None if self._running is None else self._running()
        if other is None or other is trainer:
            return
        step = other.train_batch_loop.batch_step_fn
        if isinstance(step, BatchStep) and self in step.callbacks:
            raise ValueError(
                f"Expected {type(self).__name__} to train one Trainer at a time, but got a second one while the first "
                "is running. Give each Trainer a callback of its own."
            )

    def _schedule(self, trainer: Any) -> tuple[int, float]:
        """Return the first optimizer step, and the steps of ``warmup``, of which a fraction ends with the training."""
        steps = trainer.n_batches / trainer.accumulation_steps
        # 0.07 of 100 steps is 7.000000000000001 to the computer
        first = math.ceil((self.start if self.start >= 1 else self.start * steps) - 1e-6)
        return first, self.warmup if self.warmup > 1 else min(self.warmup * steps, max(0.0, steps - first))

    def _check_begins(self, trainer: Any) -> None:
        steps = trainer.n_batches // trainer.accumulation_steps
        first, growing = self._schedule(trainer)
        if 0 < steps <= first:
            logger.rank_zero_warning(
                f"Expected `start` to be within the training of {steps} optimizer steps, but got {self.start}: "
                f"{type(self).__name__} will never act. Give a smaller one, or a fraction of the training below 1.",
                once=True,
            )
        elif 0 < steps - first < growing:
            logger.rank_zero_warning(
                f"Expected `warmup` to end within the training of {steps} optimizer steps, but got {self.warmup}: "
                f"{type(self).__name__} will only come to {(steps - first) / growing:.2g} of its perturbation. Give a "
                "smaller one, or a fraction of the training, at most 1.0.",
                once=True,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None, "_running": None}  # which name a Trainer of this process


@arguments
class AttackCallback(MethodCallback):
    """
    Trains under an attack. A Trainer takes at most one.

    :arguments:
    """

    method_class: ClassVar[Type[Attack]]

    warmup: float = warmup()

    #: whether the training learns; ``None`` for a method without a clean pass, whose loss says too little of that
    learning_ = cast("Learning | None", None)

    def begin(self, trainer: Any) -> None:
        size, *_ = self.names()
        self.learning_ = Learning(self.method_class.__name__, size) if isinstance(self, TwoPassArguments) else None
        super().begin(trainer)

    def on_train_batch_end(self, trainer: Any) -> None:
        super().on_train_batch_end(trainer)
        if self.learning_ is not None:
            self.learning_.note(trainer)

    def on_train_epoch_end(self, trainer: Any) -> None:
        if self.learning_ is not None:
            self.learning_.check(trainer)

    def state_dict(self) -> dict[str, Any]:
        more = {} if self.learning_ is None else {"learning": self.learning_.state_dict()}
        return {**super().state_dict(), **more}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.learning_ is not None and "learning" in state:
            self.learning_.load_state_dict(state["learning"])


@arguments
class RegularizerCallback(MethodCallback):
    """
    Trains with a regularizer. Different ones combine, with each other and with an attack.

    :arguments:
    """

    method_class: ClassVar[Type[Regularizer]]

    def on_after_optimizers_step(self, trainer: Any, optimizers: Any) -> None:
        if isinstance(self.method_, Regularizer):
            self.method_.after_step()
