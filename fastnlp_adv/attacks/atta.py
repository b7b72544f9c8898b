"""ATTA: every training example keeps its perturbation from epoch to epoch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..functional import ascend, project
from ..method import Cost
from ..options import check_number, one_of, option, options
from ..taps import Lookup
from .base import Pass
from .embedding import EmbeddingAttack
from .example_store import ExampleStore, Key

__all__ = ["ATTA"]


@options
class ATTA(EmbeddingAttack):
    r"""
    Adversarial training with transferable adversarial examples (Zheng et al. 2020, "Efficient Adversarial Training with
    Transferable Adversarial Examples", https://arxiv.org/abs/1912.11969), as one pass per step: the steps of an attack
    are spread over the epochs.

    Training example :math:`i` keeps a perturbation :math:`d_i` of the outputs of its embedding lookups, 0 at first. The
    model trains on it, and the gradient of the same pass moves it, for the next epoch,

    .. math:: \min_\theta L(e_i + d_i), \qquad
        d_i \leftarrow \Pi_\epsilon\bigl(d_i + \alpha\, g_i / \lVert g_i \rVert_2\bigr), \quad
        g_i = \nabla_{e_i} L(e_i + d_i),

    with norms over the sequence. One forward and one backward pass, as in plain training; the first epoch is plain.

    Examples are known by their indices in the data set, which are given to :meth:`step` or put into ``indices``. An
    index has to mean the same example in every epoch. The perturbations are kept on the CPU by position, counted from
    the first token, so an example may be padded to another length, on either side, in every epoch; what is cut off is
    forgotten. They take up to :meth:`memory` bytes, and go to the device and back in every step.

    An embedding that is looked up several times in a forward pass has one perturbation per example and lookup. When an
    example stands in a batch several times, it has one perturbation, whose gradient is the sum over its places; so have
    the copies in the doubled batch of R-Drop's ``mode="concat"``. An example whose gradient is
    zero, infinite or NaN keeps its perturbation. Where the ids are the embedding's ``padding_idx`` there is none.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 1])
        >>> atta = ATTA(model, epsilon=0.1, alpha=0.05)
        >>> for epoch in range(4):
        ...     loss = atta.step(lambda: nn.functional.cross_entropy(model(ids), labels), indices=[7, 3])
        >>> round(atta.perturbation_norm.item() / 2**0.5, 3)   # of the two together
        0.1
        >>> atta.close()
    """

    epsilon: float = option(
        default=0.1,
        check=check_number,
        doc="the norm that a perturbation may reach, in the units of the embedding",
        kw_only=False,
    )
    alpha: float = option(default=0.05, check=check_number, doc="the length of an ascent step, in the same units")
    storage_dtype: torch.dtype = option(
        default=torch.float16,
        check=one_of(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        doc="the precision of the perturbations between the epochs: ``torch.float16``, ``bfloat16``, ``float32`` or "
        "``float64``",
    )

    paper = "https://arxiv.org/abs/1912.11969"
    fixed = EmbeddingAttack.fixed | {"storage_dtype"}

    def _forget(self) -> None:
        super()._forget()
        self.store = ExampleStore(self.storage_dtype)
        #: the indices of the examples of the next batch; every step uses them up
        self.indices: Iterable[int] | None = None

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 0)

    def step(
        self,
        closure: Callable[[], Tensor],
        indices: Iterable[int] | None = None,
        *,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> Tensor:
        """
        Run the pass of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss.
        :param indices: those of the batch's examples in the data set; those in ``self.indices`` if ``None``.
        :param accumulation_steps: see :meth:`Attack.step`.
        :param total_steps: see :meth:`Attack.step`.
        :return: the loss, detached.
        """
        if indices is not None:
            self.indices = indices
        return super().step(closure, accumulation_steps=accumulation_steps, total_steps=total_steps)

    def passes(self) -> Iterator[Pass]:
        batch = _Examples(self.indices)
        self.indices = None
        for tap in self.embedding_taps:
            tap.start = partial(self._stored, tap.name, batch)
        yield Pass(adversarial=True, last=True)
        self._ascend(batch)

    def memory(self, examples: int, length: int) -> int:
        """
        Return the bytes that the store comes to when each example is looked up once.

        :param examples: how many there are.
        :param length: how many tokens they have.
        """
        return (
            examples
            * length
            * sum(tap.embedding.shape[-1] for tap in self.embedding_taps)
            * torch.finfo(self.storage_dtype).bits
            // 8
        )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "examples": self.store.state_dict()} if not self.is_unattached else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if not self.is_unattached:
            self.store.load_state_dict(state["examples"])

    def _stored(self, name: str, batch: _Examples, lookup: Lookup, output: Tensor) -> Tensor:
        batch.check(name, lookup.ids)
        stored = self.store.read(batch.keys(name, lookup.number), _with_positions(output).shape[1:])
        if stored is None:
            return torch.zeros_like(output)
        real = _with_positions(lookup.real())
        rows = batch.spread(stored.to(output.device))
        return torch.where(real, _shift(rows, -_first_token(real)), 0).reshape(output.shape)

    def _ascend(self, batch: _Examples) -> None:
        moved = []
        new: dict[Key, Tensor] = {}
        for tap in self.embedding_taps:
            deltas = tap.deltas()
            step, radius = (length * tap.unit * self.strength for length in (self.alpha, self.epsilon))
            for delta in deltas:
                assert delta.free is not None
                first = _first_token(_with_positions(delta.free))
                delta.grad = batch.total(_shift(_with_positions(delta.grad), first))
                value = batch.first(_shift(_with_positions(delta.value), first))
                dims = tuple(range(1, value.dim()))
                delta.value = project(ascend(value, delta.grad, step, dims=dims), radius, dims=dims)
                new.update(self.store.rows(batch.keys(tap.name, delta.number), delta.value))
            moved.append(deltas)
        self.record(moved)
        self.store.update(new)


class _Examples:
    """The examples of a batch, each once, and where they stand in it, by the index of each row."""

    def __init__(self, indices: Iterable[int] | None):
        if indices is None:
            raise ValueError(
                "Expected the indices of the batch's examples in the data set before each step of ATTA, but got None. "
                "Call `step(closure, indices=...)`, or set `indices` before `running()`."
            )
        found = indices.tolist() if isinstance(indices, Tensor) else [operator.index(index) for index in indices]
        places = {example: place for place, example in enumerate(dict.fromkeys(found))}
        self._examples = list(places)
        self._places = [places[example] for example in found]

    def keys(self, tap: str, lookup: int) -> list[Key]:
        return [Key(tap, lookup, example) for example in self._examples]

    def check(self, tap: str, ids: Tensor) -> None:
        """Refuse a lookup whose rows are not the examples."""
        if len(self._places) != len(ids):
            raise RuntimeError(
                f"Expected an index for each row of the ids that embedding `{tap}` looks up, but got "
                f"{len(self._places)} indices and ids of shape {tuple(ids.shape)}. Give one index per example, and the "
                "model ids whose first dimension is the batch; or name another embedding with `emb_name` if this one "
                "looks up something else."
            )

    def spread(self, x: Tensor) -> Tensor:
        """Turn one row per example into one row per place in the batch."""
        return x if self._once else x[self._place_of_rows(x)]

    def total(self, x: Tensor) -> Tensor:
        """Turn one row per place in the batch into one per example, the sum over its places."""
        if self._once:
            return x
        return x.new_zeros((len(self._examples), *x.shape[1:])).index_add(0, self._place_of_rows(x), x)

    def first(self, x: Tensor) -> Tensor:
        """Turn one row per place in the batch into one per example, that of its first place."""
        if self._once:
            return x
        return x[torch.tensor([self._places.index(place) for place in range(len(self._examples))], device=x.device)]

    @property
    def _once(self) -> bool:
        return len(self._places) == len(self._examples)

    def _place_of_rows(self, x: Tensor) -> Tensor:
        return torch.tensor(self._places, device=x.device)


def _with_positions(x: Tensor) -> Tensor:
    """Give ids of one dimension a dimension of one position per example."""
    return x.unsqueeze(1) if x.dim() == 2 else x


def _first_token(real: Tensor) -> Tensor:
    """Return where the sequences begin, after padding on the left; of shape ``(..., 1, 1)``."""
    if not real.numel():
        return real.new_zeros((*real.shape[:-2], 1, 1), dtype=torch.long)
    return real.int().argmax(-2, keepdim=True)


def _shift(x: Tensor, by: Tensor) -> Tensor:
    """Return ``x`` with what is at position ``p + by`` at ``p``, and 0 where nothing is."""
    positions = x.shape[-2]
    if not x.numel():
        return x
    source = torch.arange(positions, device=x.device).unsqueeze(-1) + by
    taken = x.gather(-2, source.clamp(0, positions - 1).expand_as(x))
    return torch.where((source >= 0) & (source < positions), taken, 0)
