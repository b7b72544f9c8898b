"""What all attacks share: a step is a generator of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tap import Tap

__all__ = ["Attack", "Pass"]


@dataclass(frozen=True)
class Pass:
    """
    One forward and backward pass of a training step.

    :param weight: the factor of its loss.
    :param trains: whether parameters get gradients; if not, only the gradient at the embeddings is computed.
    :param adversarial: whether the input is perturbed.
    :param last: whether it is the last one, in which distributed training reduces the gradients.
    """

    weight: float = 1.0
    trains: bool = True
    adversarial: bool = False
    last: bool = False


class Attack(ABC):
    """
    An attack describes its step as a generator of passes, :meth:`passes`; whoever drives it runs the model in between.

    :param model: the model.
    :param taps: where it reads gradients and puts perturbations.
    """

    def __init__(self, model: nn.Module, taps: list[Tap]):
        _refuse_data_parallel(model)
        self.taps = taps
        self.grad_norm: Tensor | None = None
        self.perturbation_norm: Tensor | None = None
        self.skipped: Tensor | None = None
        self.open()

    @abstractmethod
    def passes(self) -> Iterator[Pass]:
        """Yield the passes of one step, and set the perturbation for each before it is yielded."""

    def open(self) -> None:
        """Put the hooks on the model; the constructor does it."""
        for tap in self.taps:
            tap.open()

    def close(self) -> None:
        """Take perturbation and hooks off the model. The attack can be opened again."""
        for tap in self.taps:
            tap.close()

    def __enter__(self) -> Attack:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def running(self) -> Iterator[Iterator[Pass]]:
        """The passes of one step; whatever happens in between, the model is left as it was."""
        was_open = any(tap._handles for tap in self.taps)
        self.open()
        passes = self.passes()
        try:
            yield self._begun(passes)
        finally:
            passes.close()  # type: ignore[attr-defined]
            for tap in self.taps:
                tap.reset() if was_open else tap.close()

    def _begun(self, passes: Iterator[Pass]) -> Iterator[Pass]:
        for each in passes:
            for tap in self.taps:
                tap.begin_pass(keep_leaves=not each.trains)
            yield each

    def differentiate(self, loss: Tensor) -> None:
        """A backward pass that stops at the taps: the parameters' gradients are neither computed nor touched."""
        leaves = [leaf for tap in self.taps for leaf in tap.leaves]
        if not leaves:
            self.taps[0].gradients()  # says why there are none
        try:
            torch.autograd.grad(loss, leaves, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            raise RuntimeError(
                "Expected gradient checkpointing to be non-reentrant, but got `use_reentrant=True`, which cannot "
                "compute the gradient of an inner step. Turn it on with `use_reentrant=False`."
            ) from error

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """
        Run all passes of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss; called once a pass.
        :return: the loss of the first pass that trains, detached.
        """
        first: Tensor | None = None
        with self.running() as passes:
            for each in passes:
                loss = closure()
                if each.trains:
                    (loss * each.weight).backward()
                    first = loss.detach() if first is None else first
                else:
                    self.differentiate(loss)
        assert first is not None
        return first


def _refuse_data_parallel(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"Expected a model on one device a process, but got nn.DataParallel over {len(module.device_ids)} "
                "devices, whose replicas run in threads. Use DistributedDataParallel: `Trainer(device=[0, 1])`."
            )
