"""Methods on a model: attached to it or not, with hooks, noise, and a state for checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import Self

from .options import Options, options
from .random_state import Noise
from .taps import EmbeddingTap, Tap, is_flat
from .versions import comes_of_reentrant_checkpoints


@options
class ModelMethod(Options):
    """
    A method that works on a model through hooks. ``FGM(epsilon=1.0)`` is unattached and waits for :meth:`attach`;
    ``FGM(model, epsilon=1.0)`` is attached at once, with its hooks on until :meth:`close`. Arguments can be assigned at
    any time and hold from the next step on; those in ``fixed`` cannot be assigned after attaching.

    :param model: the model; ``None`` to attach later.
    """

    #: the arguments from which hooks and memory are made
    fixed: ClassVar[frozenset[str]] = frozenset({"emb_name", "granularity"})
    #: False if it also works without a model
    needs_model: ClassVar[bool] = True

    model: nn.Module | None = dataclasses.field(default=None, kw_only=False)

    def __post_init__(self) -> None:
        #: the state that :meth:`attach` loads
        self._remembered: dict[str, Any] | None = None
        model, self.model = self.model, None
        self._forget()
        super().__post_init__()
        if model is not None:
            self.attach(model)

    def _forget(self) -> None:
        """Restart."""
        self.taps: list[Tap] = []
        self.stream = Noise()
        #: how often a batch had no gradient at the taps, though others had
        self.without_grad = 0
        vars(self).pop("_flat", None)
        vars(self).pop("_norms", None)

    def find_taps(self, model: nn.Module) -> list[Tap]:
        """Return the places to perturb. Raise ``ValueError`` if the method cannot train this model."""
        return []

    def check_model(self, model: nn.Module) -> list[Tap]:
        """Raise ``ValueError`` if the method cannot train this model; return its taps."""
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Expected `model` to be a torch.nn.Module, but got {type(model).__name__}. Give "
                f"`{type(self).__name__}` the model first and the other arguments by name."
            )
        refuse_wrappers(model)
        return self.find_taps(model)

    def attach(self, model: nn.Module) -> Self:
        """
        Attach to a model and put the hooks on it. The constructor with a model calls it. The state of an earlier
        training, or from :meth:`load_state_dict`, is kept.

        :param model: the model.
        :return: the method.
        :raises ValueError: if it is attached already, or cannot train this model.
        """
        if self.model is not None:
            raise ValueError(
                f"Expected {type(self).__name__} to be unattached, but got one that is attached to a "
                f"{type(self.model).__name__}. Call `detach()` first, or make another one."
            )
        taps = self.check_model(model)
        remembered, self._remembered = self._remembered if self.needs_model else self.state_dict(), None
        self._forget()
        self.model, self.taps = model, taps
        try:
            self.make_memory(model)
            if remembered:
                self.load_state_dict(remembered)
        except BaseException:
            self.model, self.taps, self._remembered = None, [], remembered
            raise
        self.open()
        return self

    def make_memory(self, model: nn.Module) -> None:
        """Make the state that depends on the model, when the method is attached."""

    def detach(self) -> Self:
        """Take the hooks off and let go of the model; the state is kept for the next one."""
        if self.model is not None:
            remembered = self.state_dict()
            self.close()
            self.model = None
            self._forget()
            self._remembered = remembered
        return self

    def forget(self) -> Self:
        """Let go of the model and of the state; the arguments stay."""
        self.detach()
        self._remembered = None
        self._forget()
        return self

    @property
    def attached(self) -> nn.Module:
        """The model; ``RuntimeError`` if there is none."""
        if self.model is None:
            raise RuntimeError(
                f"Expected {type(self).__name__} to be attached to a model, but got none. Call `attach(model)` first, "
                f"or build it as `{type(self).__name__}(model, ...)`."
            )
        return self.model

    @property
    def is_unattached(self) -> bool:
        """Whether the method waits for :meth:`attach`."""
        return self.needs_model and self.model is None

    @property
    def skipped(self) -> Tensor | int:
        """How often there was nothing to perturb, since a batch had no gradient at the taps."""
        return self.without_grad

    def describe(self) -> str:
        """Return one line: the perturbed embeddings, their shapes and the size; empty if nothing is perturbed."""
        if not self.taps:
            return ""
        shown = [tap.describe() for tap in self.taps[:3]]
        more = f" and {len(self.taps) - 3} more" if len(self.taps) > 3 else ""
        return f"{type(self).__name__} perturbs {', '.join(shown)}{more}"

    @property
    def embedding_taps(self) -> list[EmbeddingTap]:
        """The taps on lookups: all of them where perturbations are of positions, which refuse other parameters."""
        return [tap for tap in self.taps if isinstance(tap, EmbeddingTap)]

    def open(self) -> None:
        """Put the hooks on the model; :meth:`attach` does it."""
        if self.is_unattached:
            _ = self.attached
        for tap in self.taps:
            tap.open()

    def close(self) -> None:
        """Take perturbation and hooks off the model. They can be put on again."""
        for tap in self.taps:
            tap.close()

    @property
    def is_open(self) -> bool:
        """Whether the hooks are on the model."""
        return any(tap.handles for tap in self.taps)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Keep the hooks on for one step; the model is unperturbed afterwards, also after an exception."""
        with ExitStack() as stack:
            for tap in self.taps:
                stack.enter_context(tap.on())
            yield

    @contextmanager
    def inner_forward(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Run a forward that does not train: in a precision of its own, and BatchNorm keeps its statistics."""
        frozen = []
        devices = {param.device.type for param in self.attached.parameters()} if dtype else set()
        with ExitStack() as stack:
            for device in sorted(devices):
                # the cache would hand out weights as an autocast around this one has cast them
                stack.enter_context(torch.autocast(device, dtype, cache_enabled=False))
            try:
                for norm in self._norms:
                    if norm.track_running_stats:
                        frozen.append(norm)
                        norm.track_running_stats = False
                yield
            finally:
                for norm in frozen:
                    norm.track_running_stats = True

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> None:
        """Run a backward pass that stops at the taps: no parameter gradient is computed or touched."""
        inputs: list[Tensor] = []
        for tap in self.taps:
            inputs += tap.leaves
        before = list(map(attrgetter("grad"), self._flat))
        if not inputs:
            self.check_grad()
            return
        try:
            # each operation has the precision of its forward; the meta device knows no autocast
            is_meta = loss.device.type == "meta"
            with nullcontext() if is_meta else torch.autocast(loss.device.type, torch.bfloat16, enabled=False):
                found = torch.autograd.grad(loss, inputs, allow_unused=True, create_graph=create_graph)
        except RuntimeError as error:
            if not comes_of_reentrant_checkpoints(error):
                raise
            raise RuntimeError(
                "Expected gradient checkpointing to be non-reentrant, but got `use_reentrant=True`, which cannot "
                "compute the gradient of an inner step. Turn it on with `use_reentrant=False`."
            ) from error
        for param, grad in zip(self._flat, before, strict=True):
            # FullyShardedDataParallel takes gradients of earlier passes off its flat parameters before a backward pass,
            # and puts them back only where this one reaches them.
            if param.grad is None:
                param.grad = grad
        grads = iter(found)
        for tap in self.taps:
            tap.receive(list(islice(grads, len(tap.leaves))))

    @cached_property
    def _norms(self) -> list[_NormBase]:
        modules = () if self.model is None else self.model.modules()
        return [module for module in modules if isinstance(module, _NormBase)]

    @cached_property
    def _flat(self) -> list[nn.Parameter]:
        """The model's flat parameters; in the first inner pass, when they are looked for, it is wrapped."""
        return [] if self.model is None else [param for param in self.model.parameters() if is_flat(param)]

    def check_grad(self) -> bool:
        """
        Return whether any tap has a gradient of this pass: some batches of a multi-task training do not use the
        embedding. Raise ``RuntimeError`` if no pass has ever had one.
        """
        for tap in self.taps:
            if tap.has_grad:
                return True
        for tap in self.taps:
            tap.deltas()  # raises where there never was a gradient
        return False

    def check_change(self, name: str, value: Any) -> None:
        if name in self.fixed and self.model is not None and value != getattr(self, name):
            raise ValueError(
                f"Expected `{name}` to stay {getattr(self, name)!r} while {type(self).__name__} is attached, but got "
                f"{value!r}. Call `detach()`, assign it, and attach the method again; a callback takes it before "
                "training begins."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: noise, and which taps have had a gradient."""
        if self._remembered is not None:
            return self._remembered
        return {
            "noise": self.stream.state_dict(),
            "seen": [tap.name for tap in self.taps if tap.had_grad],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continue from a :meth:`state_dict`; an unattached method does so when it is attached.

        :raises ValueError: if it is not the state of such a method.
        """
        if "noise" not in state:
            raise ValueError(
                f"Expected the state of {type(self).__name__}, but got one with {', '.join(state) or 'nothing'}. Give "
                "the `state_dict()` of the same method."
            )
        if self.is_unattached:
            self._remembered = dict(state)
            return
        self.stream.load_state_dict(state["noise"])
        for tap in self.taps:
            tap.had_grad = tap.had_grad or tap.name in state.get("seen", ())


def refuse_wrappers(model: nn.Module) -> None:
    """Raise for wrappers under which several passes cannot run."""
    for module in model.modules():
        if isinstance(module, DistributedDataParallel) and module.static_graph:
            raise ValueError(
                "Expected DistributedDataParallel without `static_graph`, since a step has several passes, but got "
                "`static_graph=True`. Remove it; `find_unused_parameters=True` also works."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"Expected a model on one device per process, but got nn.DataParallel over {len(module.device_ids)} "
                "devices, whose replicas run in threads. Use DistributedDataParallel: `Trainer(device=[0, 1])`."
            )
