"""The methods in the ``Trainer`` of transformers and in its subclasses."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attacks import ATTA, Attack, Pass
from ..attacks.base import measured
from ..functional import nodes_of
from ..method import Method, say
from ..model_method import refuse_wrappers
from ..regularizers import RDrop, Regularizer, warn_without_dropout
from ..regularizers.base import nesting, regularized
from ..regularizers.outputs import named_with
from ..regularizers.rdrop_mixin import check_called
from ..versions import has_compiled_parts
from .checks import check_methods

#: the first version with the number of batches of an optimizer step, which is smaller at the end of an epoch
OLDEST = (4, 55)
_OLD = (
    f"Expected transformers {OLDEST[0]}.{OLDEST[1]} or later for `{__name__}`, but got {{}}. Run `pip install "
    f"'transformers[torch]>={OLDEST[0]}.{OLDEST[1]}'`, or train in a loop of your own, with `attack.step(closure)`."
)

try:
    import transformers
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(_OLD.format(error)) from error
if tuple(map(int, transformers.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(_OLD.format(f"transformers {transformers.__version__}"))

_Base: Any = object  # of the mixin; type checkers know no more than that it goes before a Trainer
#: the field of a batch with the number that the loss is divided by, see :func:`~fastnlp_adv.batch.scale_counts`
_COUNT = "num_items_in_batch"
#: the column with the indices of examples, for ATTA
_INDEX = "index"
#: the file of each process in a checkpoint
_FILE = "methods_{}.pt"


class MethodsMixin(_Base):
    """
    Makes a subclass of transformers' ``Trainer`` train with methods: ``class MyTrainer(MethodsMixin, SFTTrainer)``.

    The methods act in ``training_step``, around the ``compute_loss`` of the class. Everything else is the Trainer's:
    accumulation, mixed precision, clipping, DistributedDataParallel. ``trainer.log`` gets their losses and norms as
    ``adv/loss``, ``adv/kl`` and so on, the latest on this process, which :attr:`adv` holds as tensors. Checkpoints hold
    their state.

    :param args: the arguments of the Trainer.
    :param methods: unattached methods, such as ``[FGM(epsilon=1.0), RDrop()]``: at most one attack, and any
        regularizers. ATTA needs a column ``index`` in the data set.
    :param kwargs: the arguments of the Trainer.
    :raises TypeError: if ``methods`` holds anything else.
    :raises ValueError: if a method is attached, does not go with another one, or cannot train the model; under FSDP,
        DeepSpeed and ``nn.DataParallel``.

    Example::

        >>> from transformers import Trainer
        >>> class MyTrainer(MethodsMixin, Trainer):
        ...     pass
    """

    def __init__(self, *args: Any, methods: Sequence[Method] = (), **kwargs: Any):
        check_methods(methods)
        self.methods = [*methods]
        self._attack: Attack | None = next((each for each in methods if isinstance(each, Attack)), None)
        self._regularizers = sorted((each for each in methods if isinstance(each, Regularizer)), key=nesting)
        #: the latest values that the methods measured, as in fastNLP's ``trainer.state["adv"]``
        self.adv: dict[str, Any] = {}
        super().__init__(*args, **kwargs)
        _check_trainer(self)
        for method in self.methods:
            method.check_model(self.model)
        self.add_callback(_Events(self))

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the passes of a batch; see transformers."""
        train, compute_loss = super().training_step, self.compute_loss
        if not self.methods:
            return train(model, inputs, num_items_in_batch, *args, **kwargs)
        self._begin_batch(num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        batch, attack = self._prepare_inputs(inputs), self._attack
        if isinstance(attack, ATTA):
            batch, attack.indices = _take_index(batch)
        count = num_items_in_batch
        if count is not None:
            if self._uses_count is None and isinstance(count, Tensor):
                count = count.detach().float().requires_grad_()  # a leaf, whose use the graph of the first loss shows
            batch = copy.copy(batch)
            batch[_COUNT] = count

        def train_step(batch: Any) -> dict[str, Any]:
            with self.compute_loss_context_manager():
                loss = compute_loss(model, batch, bool(self._regularizers), num_items_in_batch=batch.pop(_COUNT, None))
            loss, outputs = loss if self._regularizers else (loss, {})
            if self._uses_count is None and count is not None and loss.requires_grad:
                self._check_count(loss, count)
            # methods get a mean; a loss that is divided by the count of all micro-batches is a part of their mean
            return {**named_with(loss, outputs), "loss": loss * self._divisor if self._is_divided else loss}

        def forward(each: Pass) -> Tensor:
            loss: Tensor = objective(each.of(batch))["loss"]
            loss = loss.mean() if loss.dim() else loss
            self.adv["adv_loss" if each.adversarial else "loss"] = loss.detach()
            self.adv.update(terms)
            return loss

        def backward(loss: Tensor, each: Pass) -> None:
            # the Trainer's own step, which divides the loss for accumulation, scales it and runs the backward pass
            loss = loss / self._divisor if self._is_divided else loss
            with _replaced(self, {"compute_loss": lambda *_, **__: loss, "_prepare_inputs": lambda inputs: inputs}):
                train(model, inputs, num_items_in_batch, *args, **kwargs)

        def scale(loss: Tensor) -> Tensor:
            scaler = self.accelerator.scaler
            return loss / self._divisor if scaler is None else scaler.scale(loss / self._divisor)

        no_sync = partial(self.accelerator.no_sync, model)
        with ExitStack() as stack:
            objective, acting, terms = regularized(train_step, self._regularizers, no_sync, stack)
            if attack is None:
                backward(loss := forward(Pass(last=True)), Pass(last=True))
            else:
                reduces = self.args.world_size > 1
                loss = attack.run_passes(forward, backward, batch, no_sync, scale, reduces=reduces)
        self.adv.update(measured(attack, acting, self._divisor, self.accelerator.scaler))
        if attack is not None:
            say("", attack.follow_learning())
        return loss.detach() / self._divisor

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the values of the methods beside the loss; see transformers."""
        if "loss" in logs:
            logs.update({f"adv/{name}": float(value) for name, value in self.adv.items()})
        super().log(logs, *args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._checkpoint = kwargs.get("resume_from_checkpoint")
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            for method in self.methods:
                method.detach()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        states = {type(method).__name__: method.state_dict() for method in self.methods}
        torch.save(states, os.path.join(output_dir, _FILE.format(self.args.process_index)))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if any(isinstance(method, ATTA) for method in self.methods) and _INDEX not in self._signature_columns:
            self._signature_columns.append(_INDEX)

    def _begin_training(self) -> None:
        """Attach the methods to the model, with their state in the checkpoint that is resumed."""
        refuse_wrappers(self.model_wrapped)
        states = {} if self._checkpoint is None else _load(self._checkpoint, self.args.process_index)
        self.adv.clear()
        self._batch = -1, 0  # the optimizer step, and the number of the batch in it
        self._uses_count: bool | None = None
        for method in self.methods:
            method.forget()
            name = type(method).__name__
            if name in states:
                method.load_state_dict(states[name])
            method.attach(self.model)
            if not has_compiled_parts(self.model_wrapped):  # compiled graphs do not notice hooks that come later
                method.close()  # hooks are on during a step only
            self._tell_progress(method)
            if isinstance(method, RDrop):
                warn_without_dropout(self.model)
            say(*method.introduce(name))

    def _tell_progress(self, method: Method) -> None:
        progress, steps = method.progress, self.args.gradient_accumulation_steps
        progress.accumulation_steps, progress.total_steps = steps, self.state.max_steps
        progress.batches = self.state.global_step * steps + self._batch[1]  # an epoch may end with fewer

    def _begin_batch(self, count: Any) -> None:
        step, number = self._batch
        self._batch = self.state.global_step, number + 1 if step == self.state.global_step else 0
        for method in self.methods:
            self._tell_progress(method)
        # as `training_step` decides whether to divide the loss for accumulation
        divided = (self.model_accepts_loss_kwargs and count is not None) or self.compute_loss_func is not None
        decided = getattr(self, "loss_is_scaled_for_ga", None)
        self._is_divided: bool = divided if decided is None else decided
        #: the number that the mean loss of a batch is divided by before the backward pass
        self._divisor: float = self.current_gradient_accumulation_steps
        if self._is_divided and self._uses_count is False:
            self._divisor = self._own_divisor()

    def _own_divisor(self) -> float:
        """Return the divisor of a loss that leaves the count out, which transformers multiplies by the processes."""
        is_own = getattr(self.compute_loss, "__func__", None) is not Trainer.compute_loss
        return 1 if is_own or not self.args.average_tokens_across_devices else 1 / self.args.world_size

    def _check_count(self, loss: Tensor, count: Any) -> None:
        """Find out, once, whether the loss is divided by the count, as models with ``**kwargs`` promise."""
        self._uses_count = self.compute_loss_func is not None or not isinstance(count, Tensor)
        self._uses_count |= any(getattr(node, "variable", None) is count for node in nodes_of(loss))
        if self._is_divided and not self._uses_count:
            times, self._divisor = self._divisor / self._own_divisor(), self._own_divisor()
            warning = (
                f"{type(self.model).__name__} leaves `{_COUNT}` out of its loss, so transformers makes the gradient "
                f"{times:g} times the mean's. `trainer.model_accepts_loss_kwargs = False` makes it the mean's."
            )
            say("", warning if times > 1 else "")


class AdversarialTrainer(MethodsMixin, Trainer):
    """
    transformers' ``Trainer`` with attacks and regularizers; see :class:`MethodsMixin`.

    :param args: the arguments of ``transformers.Trainer``, in its order.
    :param methods: unattached methods: at most one attack, and any regularizers.
    :param kwargs: the arguments of ``transformers.Trainer``.

    Example::

        >>> from fastnlp_adv import FGM, RDrop
        >>> methods = [FGM(epsilon=1.0), RDrop()]   # AdversarialTrainer(model=model, args=args, methods=methods)
    """


class _Events(TrainerCallback):
    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer._begin_training()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        for method in self.trainer._regularizers:
            method.after_step()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        if self.trainer._attack is not None:
            say(*self.trainer._attack.follow_epoch())


def _check_trainer(trainer: Any) -> None:
    """Raise ``ValueError`` if the methods cannot work in this Trainer."""
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    for unfit, kind, way_out in (
        (trainer.is_fsdp_enabled, "FSDP", "use fastNLP's Trainer with `driver='torch_fsdp'`"),
        (trainer.is_deepspeed_enabled, "DeepSpeed", "drive the engine in a loop of your own with `attack.drive`"),
        (trainer.args.n_gpu > 1, "nn.DataParallel", "set CUDA_VISIBLE_DEVICES to one GPU"),
        (parallel is not None, "`parallelism_config`", "leave it out"),
        (getattr(trainer, "is_distributed_loading_by_transformers", False), "a sharded model", "load it whole"),
    ):
        if unfit and trainer.methods:
            raise ValueError(
                f"Expected each process to hold the whole model, on one device or under DistributedDataParallel, "
                f"but got {kind}. Start the script with `torchrun`, or {way_out}."
            )
    if not any(isinstance(method, RDrop) for method in trainer.methods):
        for module in trainer.model.modules():
            check_called(module, "add `RDrop()` to `methods`, which runs the model twice")


def _take_index(batch: Any) -> tuple[Any, Any]:
    """Return the batch without the indices of its examples, and these."""
    if _INDEX not in batch:
        raise ValueError(
            f"Expected a column `{_INDEX}` in the data set, since ATTA keeps a perturbation for each example, but got "
            f"a batch of {sorted(batch)}. Add the numbers of the examples, as `dataset.add_column('{_INDEX}', "
            "range(len(dataset)))` does, and let the collator keep them."
        )
    batch = copy.copy(batch)
    return batch, batch.pop(_INDEX)


@contextmanager
def _replaced(thing: Any, values: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Set attributes of an object until the end of the block."""
    before = {name: vars(thing)[name] for name in values if name in vars(thing)}
    vars(thing).update(values)
    try:
        yield
    finally:
        for name in values:
            del vars(thing)[name]
        vars(thing).update(before)


def _load(folder: str, process: int) -> dict[str, Any]:
    """Return the states of the methods in a checkpoint; the first process's where this one has left none."""
    for number in (process, 0):
        file = os.path.join(folder, _FILE.format(number))
        if os.path.isfile(file):
            states: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            return states
    say("", f"The checkpoint {folder} holds no state of methods, which start from the beginning.")
    return {}
