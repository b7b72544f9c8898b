"""What attacks and regularizers share: hooks that are on or off, noise, dropout masks, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, FrozenSet, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .arguments import Arguments, arguments
from .random_state import Noise, Replay
from .taps import EmbeddingTap, Tap, is_flat
from .versions import comes_of_reentrant_checkpoints

__all__ = ["Method", "ModelMethod"]


class Method(Arguments):
    """
    A method that trains a model. It is open from the beginning; :meth:`close` takes its hooks off. Its arguments can be
    assigned at any time and hold from the next step on, but for those in ``fixed``.
    """

    #: the address of the paper
    paper: ClassVar[str]
    #: the arguments from which hooks and memory are made: a method with others has to be built anew
    fixed: ClassVar[FrozenSet[str]] = frozenset({"emb_name", "granularity", "dropout_mask"})

    #: of a method without the argument; without an annotation, which would make an argument of it
    dropout_mask = cast(Any, "new")

    def set_up(self, model: nn.Module | None, taps: list[Tap]) -> None:
        """
        Install the hooks.

        :param model: the model; ``None`` for a method that needs to know nothing of it.
        :param taps: where it reads gradients and puts perturbations.
        """
        if model is not None:
            _refuse_data_parallel(model)
        self.taps = taps
        self._watched = model
        self.stream = Noise()
        self.replay = Replay(model, self.dropout_mask)
        self.unreached = 0
        #: whether the hooks are on the model
        self.is_open = False
        self.open()

    @property
    def skipped(self) -> Tensor | int:
        """How often there was nothing to perturb, since the batch did not come to a tap."""
        return self.unreached

    def describe(self) -> str:
        """
        Say, in one line, what is perturbed and by how much.

        :return: the line; empty for a method that perturbs nothing.
        """
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
        """Put the hooks on the model; the constructor does it."""
        for tap in self.taps:
            tap.open()
        vars(self)["is_open"] = True  # no argument, so without the check of one in each step

    def close(self) -> None:
        """Take perturbation and hooks off the model. They can be put on again."""
        for tap in self.taps:
            tap.close()
        vars(self)["is_open"] = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def running(self) -> Iterator[Any]:
        """Enclose the passes of one step; whatever happens in between, the model is left as it was."""
        was_open = self.is_open
        try:
            self.open()  # also what was frozen when it was opened
            yield
        finally:
            if not was_open:
                self.close()
            for tap in self.taps if was_open else ():
                tap.reset()

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> None:
        """Run a backward pass that stops at the taps: no parameter gradient is computed or touched."""
        leaves = [tap.leaves for tap in self.taps]
        if not any(leaves):
            self.check_reached()
            return
        try:
            inputs = [leaf for each in leaves for leaf in each]
            before = [param.grad for param in self._flat]
            found = torch.autograd.grad(loss, inputs, allow_unused=True, create_graph=create_graph)
        except RuntimeError as error:
            if not comes_of_reentrant_checkpoints(error):
                raise
            raise RuntimeError(
                "Expected gradient checkpointing to be non-reentrant, but got `use_reentrant=True`, which cannot "
                "compute the gradient of an inner step. Turn it on with `use_reentrant=False`."
            ) from error
        for param, grad in zip(self._flat, before):
            # FullyShardedDataParallel takes gradients of earlier passes off its flat parameters before a backward pass,
            # and puts them back only where this one has come to them.
            if param.grad is None:
                param.grad = grad
        grads = iter(found)
        for tap, own in zip(self.taps, leaves):
            tap.receive([next(grads) for _ in own])

    @cached_property
    def _flat(self) -> list[nn.Parameter]:
        """The model's flat parameters; in the first inner pass, when they are looked for, it is wrapped."""
        return [] if self._watched is None else [param for param in self._watched.parameters() if is_flat(param)]

    def check_reached(self) -> bool:
        """
        Tell whether the pass came to any tap.

        :return: False where it did not, but others have: some batches of a multi-task training go elsewhere.
        :raises RuntimeError: if no pass has ever come to one of the taps.
        """
        for tap in self.taps:
            if tap.reached:
                return True
        for tap in self.taps:
            tap.deltas()  # says why there is nothing, where nothing ever was
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: the stream of the noise, and which taps a gradient has come to."""
        return {"noise": self.stream.state_dict(), "seen": [tap.name for tap in self.taps if tap.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.stream.load_state_dict(state["noise"])
        for tap in self.taps:
            tap.seen = tap.seen or tap.name in state.get("seen", ())


@arguments
class ModelMethod(Method):
    """
    A method that is built on a model.

    :param model: the model.
    """

    model: nn.Module


def _refuse_data_parallel(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"Expected a model on one device per process, but got nn.DataParallel over {len(module.device_ids)} "
                "devices, whose replicas run in threads. Use DistributedDataParallel: `Trainer(device=[0, 1])`."
            )
