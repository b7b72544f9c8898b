"""ATTA: every training example keeps its perturbation from epoch to epoch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_arguments
from ..embedding import find_embeddings
from ..functional import ascend, project
from .base import Pass
from .embedding import EmbeddingAttack
from .example_store import ExampleStore, Key

__all__ = ["ATTA"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ATTA(EmbeddingAttack):
    r"""
    Adversarial training with transferable adversarial examples (Zheng et al. 2020, "Efficient Adversarial Training with
    Transferable Adversarial Examples", https://arxiv.org/abs/1912.11969), as one pass a step: the steps of an attack
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

    An embedding that is looked up several times in a forward pass, or by several forward passes, has one perturbation
    an example and lookup. When an example stands in a batch several times, as all do in the doubled batch of R-Drop's
    ``mode="concat"``, it has one perturbation, whose gradient is the sum over its copies. An example whose gradient is
    zero, infinite or NaN keeps its perturbation. Where the ids are the embedding's ``padding_idx`` there is none.

    :param model: the model; its weights are never written.
    :param epsilon: the norm that a perturbation may reach, in the units of the embedding.
    :param alpha: the length of a step, in the same units.
    :param storage_dtype: the precision of the perturbations between the epochs: ``torch.float16``, ``bfloat16``,
        ``float32`` or ``float64``.
    :param emb_name: see :class:`~fastnlp_adv.FGM`; embeddings only.
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([0, 1])
        >>> atta = ATTA(model, epsilon=0.1, alpha=0.05)
        >>> for epoch in range(4):
        ...     loss = atta.step(lambda: nn.functional.cross_entropy(model(ids), labels), indices=[7, 3])
        >>> round(atta.perturbation_norm.item() / 2**0.5, 3)   # of the two together
        0.1
        >>> atta.close()
    """

    norm = "l2"
    alpha: float
    storage_dtype: torch.dtype

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 0.1,
        alpha: float = 0.05,
        storage_dtype: torch.dtype = torch.float16,
        emb_name: str | None = None,
    ):
        super().__init__(
            model,
            epsilon=epsilon,
            alpha=alpha,
            storage_dtype=storage_dtype,
            emb_name=emb_name,
            dropout_mask="new",
        )
        self._features = sum(found.weight.shape[-1] for found in find_embeddings(model, emb_name).embeddings)
        self.store = ExampleStore(storage_dtype)
        #: the indices of the examples of the next batch; every step uses them up
        self.indices: Iterable[int] | None = None

    @classmethod
    def check(cls, **arguments: Any) -> None:
        check_arguments(arguments, storage_dtype=_check_dtype)

    def step(self, closure: Callable[[], Tensor], indices: Iterable[int] | None = None) -> Tensor:
        """
        Run the pass of a step in a plain training loop. Gradients are left in ``.grad``; the optimizer is yours.

        :param closure: runs the model on the batch and returns its loss.
        :param indices: those of the batch's examples in the data set; those in ``self.indices`` if ``None``.
        :return: the loss, detached.
        """
        if indices is not None:
            self.indices = indices
        return super().step(closure)

    def passes(self) -> Iterator[Pass]:
        batch = _Examples(self.indices)
        self.indices = None
        for tap in self.embedding_taps:
            tap.start = partial(self._stored, tap.name, batch)
        yield Pass(adversarial=True, last=True)
        self._climb(batch)

    def memory(self, examples: int, length: int) -> int:
        """
        The bytes that the store comes to when each example is looked up once.

        :param examples: how many there are.
        :param length: how many tokens they have.
        """
        return examples * length * self._features * self.storage_dtype.itemsize

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "examples": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.store.load_state_dict(state["examples"])

    def _stored(self, name: str, batch: _Examples, number: int, ids: Tensor, output: Tensor, real: Tensor) -> Tensor:
        batch.check(name, ids)
        stored = self.store.read(batch.keys(name, number), _with_positions(output).shape[1:])
        if stored is None:
            return torch.zeros_like(output)
        real = _with_positions(real)
        rows = batch.spread(stored.to(output.device), len(ids))
        return torch.where(real, _shift(rows, -_first_token(real)), 0).reshape(output.shape)

    def _climb(self, batch: _Examples) -> None:
        moved = []
        new: dict[Key, Tensor] = {}
        for tap in self.embedding_taps:
            grads, values = [], []
            lookups = zip(tap.numbers(), tap.values(), tap.free(), tap.gradients(), strict=True)
            for number, (value, _), real, grad in lookups:
                assert real is not None
                first = _first_token(_with_positions(real))
                grad = batch.total(_shift(_with_positions(grad), first))
                value = batch.first(_shift(_with_positions(value), first))
                dims = tuple(range(1, value.dim()))
                value = project(ascend(value, grad, self.alpha, dims=dims), self.epsilon, dims=dims)
                new |= self.store.rows(batch.keys(tap.name, number), value)
                grads.append(grad)
                values.append(value)
            moved.append((grads, values))
        self.record(moved)
        self.store.update(new)


class _Examples:
    """
    The examples of a batch, each once, and where they stand in it.

    :param indices: one a row of the batch.
    """

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
        """Refuse a lookup whose rows are neither the examples nor whole copies of them, one after the other."""
        number = len(self._places)
        same = number == len(ids)
        if not same and number and len(ids) % number == 0:  # R-Drop's doubled batch; comparing it waits for the device
            same = torch.equal(ids, torch.cat([ids[:number]] * (len(ids) // number)))
        if not same:
            raise RuntimeError(
                f"Expected an index for each row of the ids that embedding `{tap}` looks up, but got {number} indices "
                f"and ids of shape {tuple(ids.shape)}. Give one index an example, and the model ids whose first "
                "dimension is the batch; or name another embedding with `emb_name` if this one looks up something else."
            )

    def spread(self, x: Tensor, rows: int) -> Tensor:
        """From one an example to one a row."""
        return x if self._once(rows) else x[self._place_of_rows(x, rows)]

    def total(self, x: Tensor) -> Tensor:
        """From one a row to one an example, the sum over its rows."""
        if self._once(len(x)):
            return x
        return x.new_zeros((len(self._examples), *x.shape[1:])).index_add(0, self._place_of_rows(x, len(x)), x)

    def first(self, x: Tensor) -> Tensor:
        """From one a row to one an example, that of its first row."""
        if self._once(len(x)):
            return x
        return x[torch.tensor([self._places.index(place) for place in range(len(self._examples))], device=x.device)]

    def _once(self, rows: int) -> bool:
        return rows == len(self._examples)

    def _place_of_rows(self, x: Tensor, rows: int) -> Tensor:
        return torch.tensor(self._places * (rows // len(self._places)), device=x.device)


def _with_positions(x: Tensor) -> Tensor:
    """Ids of one dimension have one position an example."""
    return x.unsqueeze(1) if x.dim() == 2 else x


def _first_token(real: Tensor) -> Tensor:
    """Where the sequences begin, after padding on the left; of shape ``(..., 1, 1)``."""
    return real.int().argmax(-2, keepdim=True)


def _shift(x: Tensor, by: Tensor) -> Tensor:
    """``x`` with what is at position ``p + by`` at ``p``, and 0 where nothing is."""
    positions = x.shape[-2]
    source = torch.arange(positions, device=x.device).unsqueeze(-1) + by
    taken = x.gather(-2, source.clamp(0, positions - 1).expand_as(x))
    return torch.where((source >= 0) & (source < positions), taken, 0)


def _check_dtype(name: str, value: Any) -> None:
    if value not in _DTYPES:
        raise ValueError(f"Expected `{name}` to be one of {', '.join(map(str, _DTYPES))}, but got {value!r}.")
