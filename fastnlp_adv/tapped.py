"""What attacks and regularizers share: hooks that are on or off, noise, and dropout masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .embedding import find_embeddings
from .embedding_tap import EmbeddingTap
from .random_state import Noise, Replay
from .tap import Tap
from .weight_tap import WeightTap

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Tapped", "taps_on"]


class Tapped:
    """
    A method that taps a model. It is open from the beginning; :meth:`close` takes its hooks off.

    :param model: the model.
    :param taps: where it reads gradients and puts perturbations.
    :param dropout_mask: ``"new"``, or ``"same"`` for one dropout mask in all passes of a step.
    """

    def __init__(self, model: nn.Module, taps: list[Tap], dropout_mask: str = "new"):
        _refuse_data_parallel(model)
        self.taps = taps
        self.noise = Noise()
        self.replay = Replay(model, dropout_mask)
        self.open()

    @property
    def is_open(self) -> bool:
        """Whether the hooks are on the model."""
        return any(tap.is_open for tap in self.taps)

    @property
    def embedding_taps(self) -> list[EmbeddingTap]:
        """The taps on lookups: all of them where perturbations are of positions, which refuse other parameters."""
        return [tap for tap in self.taps if isinstance(tap, EmbeddingTap)]

    def open(self) -> None:
        """Put the hooks on the model; the constructor does it."""
        for tap in self.taps:
            tap.open()

    def close(self) -> None:
        """Take perturbation and hooks off the model. They can be put on again."""
        for tap in self.taps:
            tap.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def running(self) -> Iterator[Any]:
        """The passes of one step; whatever happens in between, the model is left as it was."""
        was_open = self.is_open
        self.open()
        try:
            yield
        finally:
            for tap in self.taps:
                tap.reset() if was_open else tap.close()

    def differentiate(self, loss: Tensor, *, create_graph: bool = False) -> list[Tensor | None]:
        """A backward pass that stops at the taps: the parameters' gradients are neither computed nor touched."""
        leaves = [leaf for tap in self.taps for leaf in tap.leaves]
        if not leaves:
            self.taps[0].gradients()  # says why there are none
        try:
            return list(torch.autograd.grad(loss, leaves, allow_unused=True, create_graph=create_graph))
        except RuntimeError as error:
            if "use_reentrant=True" not in str(error):
                raise
            raise RuntimeError(
                "Expected gradient checkpointing to be non-reentrant, but got `use_reentrant=True`, which cannot "
                "compute the gradient of an inner step. Turn it on with `use_reentrant=False`."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold: the stream of the noise."""
        return {"noise": self.noise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.noise.load_state_dict(state["noise"])


def taps_on(model: nn.Module, emb_name: str | None, granularity: str) -> list[Tap]:
    """
    Taps on all that ``emb_name`` stands for.

    :param model: the model.
    :param emb_name: see :func:`~fastnlp_adv.embedding.find_embeddings`.
    :param granularity: ``"vocab"``, ``"sequence"`` or ``"token"``.
    :return: taps on lookups and, with ``"vocab"``, on parameters that are not looked up.
    :raises ValueError: if nothing matches, or another granularity is asked of such a parameter.
    """
    matches = find_embeddings(model, emb_name)
    if matches.weights and granularity != "vocab":
        raise ValueError(
            f"Expected `granularity` to be 'vocab' for parameters that are not looked up, but got {granularity!r} with "
            f"{', '.join(f'`{name}`' for name in matches.weights)}. Choose an `emb_name` that matches embeddings only, "
            "or 'vocab' where the method has this argument."
        )
    taps: list[Tap] = [EmbeddingTap(embedding, granularity) for embedding in matches.embeddings]
    return taps + [WeightTap(name, param) for name, param in matches.weights.items()]


def _refuse_data_parallel(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"Expected a model on one device a process, but got nn.DataParallel over {len(module.device_ids)} "
                "devices, whose replicas run in threads. Use DistributedDataParallel: `Trainer(device=[0, 1])`."
            )
