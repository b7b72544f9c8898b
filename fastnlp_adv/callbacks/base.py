"""The base of callbacks: each owns one unattached method, and attaches it to the model of a training."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec

from fastNLP import Callback, logger
from fastNLP.core.controllers.loops import TrainBatchLoop
from fastNLP.core.drivers.torch_driver import TorchDDPDriver, TorchFSDPDriver, TorchSingleDriver
from torch import nn

from ..attacks import Attack
from ..method import Method
from ..model_method import refuse_wrappers
from ..options import check_assignment, unknown, with_options
from ..regularizers import RDrop, Regularizer
from ..regularizers.rdrop_mixin import check_called
from ..versions import has_compiled_parts
from .step import BatchStep, tell_progress

_P = ParamSpec("_P")


def takes(
    method_class: Callable[Concatenate[nn.Module | None, _P], Method],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Make an ``__init__`` take the arguments of a method: it makes the method, then runs its own body."""

    def decorate(body: Callable[..., None]) -> Callable[Concatenate[Any, _P], None]:
        @wraps(body)
        def init(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
            MethodCallback.__init__(self, *args, **kwargs)
            body(self, *args, **kwargs)

        own, *_ = inspect.signature(body).parameters.values()
        _, *arguments = inspect.signature(method_class).parameters.values()
        vars(init).update(method_class=method_class, __signature__=inspect.Signature([own, *arguments]))
        return init

    return decorate


class MethodCallback(Callback):
    """
    Runs a method, in ``method``, within the batch step. The method is attached to the model when training begins and
    detached when it ends. Its arguments can be read and assigned on the callback; an assigned value takes effect in the
    next batch.

    :raises ValueError: if an argument is out of range.
    :raises TypeError: if there is no such argument.
    """

    #: the class of the method
    method_class: ClassVar[type[Method]]
    method: Method

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared = getattr(vars(cls).get("__init__"), "method_class", None)
        if declared is not None:
            cls.method_class = declared
        if cls.__doc__ and "method_class" in vars(cls):
            cls.__doc__ = with_options(cls.__doc__, cls.method_class)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        if args and isinstance(args[0], nn.Module):
            raise TypeError(
                f"Expected {type(self).__name__} to get arguments of {self.method_class.__name__}, but got a model. "
                f"The Trainer has the model: give `{type(self).__name__}({self.names()[0]}=...)`."
            )
        for name in kwargs:
            if name not in self.names():
                raise TypeError(unknown(type(self), self.names(), name))
        self.method = self.method_class(None, *args, **kwargs)
        #: the Trainer whose training the method remembers
        self._trainer: weakref.ref[Any] | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arguments."""
        return cls.method_class.names()

    def values(self) -> dict[str, Any]:
        """Return the arguments by name."""
        return self.method.values()

    def __getattr__(self, name: str) -> Any:
        if name in self.names() and "method" in vars(self):
            return getattr(self.method, name)
        elsewhere = "; it is a callback for fastNLP's Trainer, other loops take its method" * name.startswith("on_")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{elsewhere}")

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.names():
                setattr(self.method, name, value)
                return
            if "method" in vars(self):
                check_assignment(self, self.names(), name)
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None}  # a Trainer of this process

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        _check_trainer(trainer, driver, self)
        self.method.check_model(driver.unwrap_model())

    def on_train_begin(self, trainer: Any) -> None:
        _check_trainer(trainer, trainer.driver, self)
        self._check_free(trainer)
        if not self._is_of(trainer):
            self.method.forget()  # another Trainer has other examples
        model = trainer.driver.unwrap_model()
        self._trainer = weakref.ref(trainer)
        self.method.detach().attach(model)  # with the state of a checkpoint, or of an earlier run
        if not has_compiled_parts(model):  # compiled graphs do not notice hooks that come later
            self.method.close()  # hooks are on during a step only
        tell_progress(self.method, trainer)
        _log(trainer, *self.method.introduce(type(self).__name__))
        # before other callbacks, which may raise
        ends = trainer.callback_manager.callback_fns["on_train_end"]
        ends.sort(key=lambda each: not isinstance(getattr(each, "__self__", None), MethodCallback))
        BatchStep.install(trainer, self.method)

    def on_train_end(self, trainer: Any) -> None:
        if self._is_of(trainer):
            BatchStep.uninstall(trainer, self.method)
            self.method.detach()  # it remembers its state for another run

    def on_save_checkpoint(self, trainer: Any) -> dict[str, Any]:
        return self.method.state_dict() if self._is_of(trainer) else {}

    def on_load_checkpoint(self, trainer: Any, states: dict[str, Any] | None) -> None:
        if states:
            self.method.forget().load_state_dict(states)
            self._trainer = weakref.ref(trainer)

    def _is_of(self, trainer: Any) -> bool:
        return self._trainer is not None and self._trainer() is trainer

    def _check_free(self, trainer: Any) -> None:
        other = None if self._trainer is None else self._trainer()
        if other is None or other is trainer:
            return
        step = other.train_batch_loop.batch_step_fn
        if isinstance(step, BatchStep) and self.method in step.methods:
            raise ValueError(
                f"Expected {type(self).__name__} to train one Trainer at a time, but got a second one while the first "
                "is running. Give each Trainer its own callback."
            )


class AttackCallback(MethodCallback):
    """Trains under an attack. A Trainer takes at most one."""

    method_class: ClassVar[type[Attack]]
    method: Attack

    def on_train_batch_end(self, trainer: Any) -> None:
        _log(trainer, "", self.method.follow_learning())

    def on_train_epoch_end(self, trainer: Any) -> None:
        _log(trainer, *self.method.follow_epoch())


class RegularizerCallback(MethodCallback):
    """Trains with a regularizer. Different ones combine, with each other and with an attack."""

    method_class: ClassVar[type[Regularizer]]
    method: Regularizer


def _log(trainer: Any, line: str, *warnings: str) -> None:
    """Log, as :func:`~fastnlp_adv.method.say`, in fastNLP's log."""
    if line and trainer.driver.global_rank == 0:
        logger.info(line)
    for warning in filter(None, warnings):
        logger.rank_zero_warning(warning)


def _check_trainer(trainer: Any, driver: Any, callback: MethodCallback) -> None:
    """Raise ``ValueError`` if the batch step cannot work with the Trainer, or with its other callbacks."""
    name, kind = type(callback).__name__, _kind(callback)
    if type(driver) not in (TorchSingleDriver, TorchDDPDriver, TorchFSDPDriver):
        raise ValueError(
            f"Expected {name} to run on fastNLP's torch driver, on one device, under DistributedDataParallel or under "
            f"FullyShardedDataParallel, but got {type(driver).__name__}. Build the Trainer with `driver='torch'` or "
            "`driver='torch_fsdp'`."
        )
    callbacks = [each for each in trainer.callback_manager.class_callbacks if isinstance(each, MethodCallback)]
    if type(driver) is TorchFSDPDriver and driver.fp16:
        raise ValueError(
            "Expected `fp16` to be False for a sharded model, since ranks would skip different steps, "
            "but got True. Give FullyShardedDataParallel a `mixed_precision` instead."
        )
    refuse_wrappers(driver.model)
    has_rdrop = any(isinstance(each.method, RDrop) for each in callbacks)
    if getattr(driver, "outside_ddp", False) and not has_rdrop:
        check_called(driver.unwrap_model(), "add `RDropCallback()`, which drives the model")
    loop = trainer.train_batch_loop
    step = trainer.batch_step_fn or getattr(loop, "batch_step_fn", None)
    own_step = step is not TrainBatchLoop.batch_step_fn and not isinstance(step, BatchStep)
    if own_step or type(loop).run is not TrainBatchLoop.run:  # another `run` need not call `batch_step_fn` at all
        culprit = getattr(step, "__name__", type(step).__name__) if own_step and step else type(loop).__name__
        raise ValueError(
            f"Expected a Trainer with fastNLP's own batch step, since {name} replaces it, but got `{culprit}`. Remove "
            "`batch_step_fn` (or the custom `train_batch_loop`), or call the attack yourself in it: see FGM and PGD."
        )
    same = [type(each).__name__ for each in callbacks if _kind(each) is kind]
    if len(same) > 1:
        one = "attack" if kind is Attack else name
        raise ValueError(f"Expected at most one {one} in a Trainer, but got {' and '.join(same)}. Keep one of them.")


def _kind(callback: MethodCallback) -> type[Method]:
    """Return the class that a Trainer takes at most one of."""
    return Attack if issubclass(callback.method_class, Attack) else callback.method_class
