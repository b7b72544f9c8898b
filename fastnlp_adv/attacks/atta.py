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
from ..taps import Lookup, Tap
from .base import Pass
from .embedding import EmbeddingAttack

#: the name of an embedding, the number of a lookup in its pass, and the index of an example in the data set
_Key = tuple[str, int, int]


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

    Examples are identified by their indices in the data set, given to :meth:`step` or assigned to ``indices``. An index
    must refer to the same example in every epoch. The perturbations are kept on the CPU by position, counted from
    the first token, so an example may be padded to another length, on either side, in every epoch; positions that are
    cut off are forgotten. They take up to :meth:`memory` bytes and go to the device and back in every step.

    If a forward looks up an embedding several times, each lookup has its own perturbations. All rows of an example in a
    batch, and its copies in R-Drop's doubled batch, share one, whose gradient is the sum over them. An example whose
    gradient is zero, infinite or NaN keeps its perturbation; there is none at padding (see ``mask``).

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
        #: the perturbations of examples: from the first token on, without zeros at the end
        self.perturbations: dict[_Key, Tensor] = {}
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
        :param indices: the indices of the batch's examples in the data set; ``self.indices`` if ``None``.
        :param accumulation_steps: see :meth:`Attack.step`.
        :param total_steps: see :meth:`Attack.step`.
        :return: the loss, detached.
        """
        if indices is not None:
            self.indices = indices
        return super().step(closure, accumulation_steps=accumulation_steps, total_steps=total_steps)

    def passes(self) -> Iterator[Pass]:
        indices, self.indices = self.indices, None
        if indices is None:
            raise ValueError(
                "Expected the indices of the batch's examples in the data set before each step of ATTA, but got None. "
                "Call `step(closure, indices=...)`, or set `indices` before `running()`."
            )
        examples = indices.tolist() if isinstance(indices, Tensor) else [operator.index(index) for index in indices]
        for tap in self.embedding_taps:
            tap.start = partial(self._start, tap, examples)
        yield Pass(adversarial=True, last=True)
        self._move(examples)

    def memory(self, examples: int, length: int) -> int:
        """
        Return how many bytes the perturbations take when each example is looked up once.

        :param examples: how many there are.
        :param length: how many tokens they have.
        """
        features = sum(tap.embedding.shape[-1] for tap in self.embedding_taps)
        return examples * length * features * torch.finfo(self.storage_dtype).bits // 8

    def _start(self, tap: Tap, examples: list[int], lookup: Lookup, output: Tensor) -> Tensor:
        if len(examples) != len(lookup.ids):
            raise RuntimeError(
                f"Expected an index for each row of the ids that embedding `{tap.name}` looks up, but got "
                f"{len(examples)} indices and ids of shape {tuple(lookup.ids.shape)}. Give one index per example, and "
                "the model ids whose first dimension is the batch; or name another embedding with `emb_name` if this "
                "one looks up something else."
            )
        rows = torch.zeros_like(_with_positions(output), dtype=self.storage_dtype, device="cpu")
        for row, example in zip(rows, examples, strict=True):
            kept = self.perturbations.get((tap.name, lookup.number, example))
            if kept is not None:
                common = tuple(slice(min(sizes)) for sizes in zip(kept.shape, row.shape, strict=True))
                row[common] = kept[common]
        real = lookup.real()
        return torch.where(real, _aligned(rows.to(output.device), real, back=True).reshape(output.shape), 0)

    def _move(self, examples: list[int]) -> None:
        places = {example: place for place, example in enumerate(dict.fromkeys(examples))}
        first_rows = [examples.index(example) for example in places]  # an example may have several
        moved = []
        new: dict[_Key, Tensor] = {}
        for tap in self.embedding_taps:
            deltas = tap.deltas()
            step, radius = (length * tap.unit * self.strength for length in (self.alpha, self.epsilon))
            for delta in deltas:
                assert delta.free is not None
                grad, value = (_aligned(x, delta.free) for x in (delta.grad, delta.value))
                if len(places) < len(examples):
                    place = torch.tensor([places[example] for example in examples], device=grad.device)
                    grad = grad.new_zeros((len(places), *grad.shape[1:])).index_add(0, place, grad)
                    value = value[first_rows]
                delta.grad = grad
                dims = tuple(range(1, value.dim()))
                delta.value = project(ascend(value, delta.grad, step, dims=dims), radius, dims=dims)
                kept = _without_end(delta.value.to(self.storage_dtype).to("cpu"))  # in this order less is copied
                new.update({(tap.name, delta.number, i): row for i, row in zip(places, kept, strict=True)})
            moved.append(deltas)
        self.record(moved)
        self.perturbations.update(new)  # all of them or, if interrupted before, none

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.is_unattached:
            return state
        lookups: dict[tuple[str, int], dict[int, Tensor]] = {}
        for (tap, lookup, example), row in self.perturbations.items():
            lookups.setdefault((tap, lookup), {})[example] = row
        # one tensor per lookup: one per example would be slow to write and to read
        state["examples"] = [
            {
                "tap": tap,
                "lookup": lookup,
                "examples": torch.tensor(list(rows)),
                "shapes": torch.tensor([row.shape for row in rows.values()]),
                "values": torch.cat([row.flatten() for row in rows.values()]),
            }
            for (tap, lookup), rows in lookups.items()
        ]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.is_unattached:
            return
        self.perturbations = {}
        for group in state["examples"]:
            shapes = group["shapes"]
            rows = group["values"].to(self.storage_dtype).to("cpu").split(shapes.prod(1).tolist())
            for example, shape, row in zip(group["examples"].tolist(), shapes.tolist(), rows, strict=True):
                self.perturbations[group["tap"], group["lookup"], example] = row.reshape(shape).clone()


def _with_positions(x: Tensor) -> Tensor:
    """Give ids of one dimension a dimension of one position per example."""
    return x.unsqueeze(1) if x.dim() == 2 else x


def _aligned(x: Tensor, real: Tensor, *, back: bool = False) -> Tensor:
    """Move each sequence so that its first real token is at position 0, or ``back``; 0 beyond the ends."""
    x = _with_positions(x)
    if not x.numel():
        return x
    first = _with_positions(real).int().argmax(-2, keepdim=True)
    source = torch.arange(x.shape[-2], device=x.device).unsqueeze(-1) + (-first if back else first)
    taken = x.gather(-2, source.clamp(0, x.shape[-2] - 1).expand_as(x))
    return torch.where((source >= 0) & (source < x.shape[-2]), taken, 0)


def _without_end(values: Tensor) -> list[Tensor]:
    """Return each row of ``(examples, ..., positions, features)`` without the positions at its end that are all 0."""
    used = values.ne(0).movedim(-2, 1).flatten(2).any(2)
    lengths = used.flip(1).cumsum(1).gt(0).sum(1).numpy()
    return [row[..., :n, :].clone() for row, n in zip(values, lengths, strict=True)]  # views would keep all values
