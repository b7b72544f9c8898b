"""TA-VAT: FreeLB with perturbations of tokens that are kept from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import ascend, group_norm, steepest_direction
from ..options import check_count, check_number, option, options
from ..taps import Delta, EmbeddingTap, Lookup
from .base import Pass
from .freelb import FreeLB, noise_on_tokens


@dataclass
class _Parts:
    """The perturbation of one lookup, in the units of ``epsilon``."""

    ids: Tensor
    real: Tensor
    instance: Tensor
    token: Tensor


@options
class TAVAT(FreeLB):
    r"""
    Token-aware virtual adversarial training (Li & Qiu 2021, "Token-Aware Virtual Adversarial Training in Natural
    Language Understanding", https://arxiv.org/abs/2004.14543).

    The perturbation has two parts. :math:`\delta` belongs to the example and starts at :class:`~fastnlp_adv.FreeLB`'s
    noise; :math:`\eta` belongs to the tokens and starts at their rows in a table :math:`V` that is kept from step to
    step, :math:`\eta_0 = V[ids] / \lVert V[ids] \rVert_2` with the norm over all real tokens of the batch. The model
    trains on :math:`\frac{1}{K}\sum_{t=0}^{K-1} L(e + \delta_t + \eta_t)`, with
    :math:`g = \nabla_e L(e + \delta_t + \eta_t)` and, per example and per token :math:`i`,

    .. math:: \delta \leftarrow \delta + \alpha\, g / \lVert g \rVert_2, \qquad
        \eta_i \leftarrow \eta_i + \alpha\, g_i / \lVert g_i \rVert_2, \qquad
        \eta_i \leftarrow \eta_i\, \lVert \eta_i \rVert_2 / \max_j \lVert \eta_j \rVert_2,

    the maximum being over the example's tokens; then, where an example's :math:`\lVert \delta + \eta \rVert_2` is above
    ``epsilon``, both parts are scaled down to it. After the last pass the row of each token of the batch becomes its
    :math:`\eta`, the mean over its positions. A step costs as much as ``steps`` plain ones, for any
    size of the vocabulary; with ``clean``, which adds the clean loss as in FreeLB, one more.

    The table starts uniform in :math:`(-1, 1)` times ``init`` :math:`/ \sqrt{H}`. It is as large as the embedding, in
    single precision, on its device, and part of :meth:`state_dict`. Padding (see ``mask``) gets no perturbation and its
    row is not written; a group whose gradient is zero, infinite or NaN makes no step. A step that raises leaves the
    table alone; under gradient accumulation each micro-batch writes it. Several lookups in a forward have their own
    norms, and the mean is over the positions of all. In distributed training each rank has its own table, and a
    checkpoint holds the first rank's.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> tavat = TAVAT(model, epsilon=0.5, steps=2)
        >>> before = tavat.tables["0.weight"].clone()
        >>> loss = tavat.step(lambda: nn.functional.cross_entropy(model(ids), labels))   # then optimizer.step()
        >>> (tavat.tables["0.weight"] != before).any(1).nonzero().flatten()
        tensor([1, 2, 3])
        >>> tavat.close()
    """

    epsilon: float = option(
        default=0.5,
        check=check_number,
        doc="the radius of the ball that an example's perturbation is kept in after an ascent step, in the units of "
        "the embedding; 0 for no projection",
        kw_only=False,
    )
    alpha: float = option(
        default=0.05,
        check=check_number,
        doc="the length of an ascent step, of an example and of a token, in the same units",
    )
    steps: int = option(default=2, check=check_count, doc="the number :math:`K` of passes")
    init: float = option(default=0.2, check=check_number, doc="the size of the noise, in the same units")

    paper = "https://arxiv.org/abs/2004.14543"

    def _forget(self) -> None:
        super()._forget()
        #: the table of each embedding, by the name of its weight
        self.tables: dict[str, Tensor] = {}
        self._parts: dict[tuple[str, int], _Parts] = {}

    def make_memory(self, model: nn.Module) -> None:
        for tap in self.embedding_taps:
            table = torch.empty(tap.embedding.shape, dtype=torch.float32, device=tap.embedding.weight.device)
            table.uniform_(-1, 1, generator=self.stream.on(table.device))
            self.tables[tap.name] = table.mul_(self.init / tap.embedding.shape[-1] ** 0.5)

    def passes(self) -> Iterator[Pass]:
        trained: set[tuple[str, int]] = set()  # the lookups that have a gradient
        try:
            for each in super().passes():
                yield each
                if not trained:
                    trained = {(tap.name, lookup.number) for tap in self.embedding_taps for lookup in tap.lookups}
            self._keep(trained)
        finally:
            self._parts = {}

    def _start(self, tap: EmbeddingTap, lookup: Lookup, output: Tensor) -> Tensor:
        table, ids, real = self.tables[tap.name], lookup.ids, lookup.real()
        if ids.device != table.device:
            raise RuntimeError(
                f"Expected the model to stay on the device that the attack was built on, {table.device}, but got ids "
                f"on {ids.device}. Build the attack after the model has been moved."
            )
        instance = noise_on_tokens(self.stream, self.init, output, real)
        rows = torch.where(real, table[ids].to(instance.dtype), 0)
        token = steepest_direction(rows, dims=tuple(range(rows.dim())))
        self._parts[tap.name, lookup.number] = _Parts(ids, real, instance, token)
        return (instance + token) * (tap.unit * self.strength)

    def _move(self) -> None:
        moved = []
        for tap in self.embedding_taps:
            deltas = tap.deltas()
            for delta in deltas:
                parts = self._parts[tap.name, delta.number]
                self._ascend(parts, delta)
                delta.value = (parts.instance + parts.token) * (tap.unit * self.strength)
            tap.perturb([delta.value for delta in deltas])
            moved.append(deltas)
        self.record(moved)

    def _ascend(self, parts: _Parts, delta: Delta) -> None:
        parts.instance = ascend(parts.instance, delta.grad, self.alpha, dims=delta.dims)
        parts.token = ascend(parts.token, delta.grad, self.alpha, dims=(-1,))
        sizes = group_norm(parts.token, dims=(-1,))
        largest = group_norm(sizes, dims=delta.dims, norm="linf")
        parts.token = parts.token * torch.where(largest > 0, sizes / largest, 0)
        if self.epsilon > 0:
            size = group_norm(parts.instance + parts.token, dims=delta.dims)
            shrink = torch.where(size > self.epsilon, self.epsilon / size, 1)
            parts.instance, parts.token = parts.instance * shrink, parts.token * shrink

    def _keep(self, trained: set[tuple[str, int]]) -> None:
        """Write the tables. All rows are computed first, so that an error leaves every table alone."""
        rows = {}
        for tap in self.embedding_taps:
            parts = [part for key, part in self._parts.items() if key in trained and key[0] == tap.name]
            if parts:
                rows[tap.name] = _new_rows(self.tables[tap.name], parts)
        for name, (ids, new) in rows.items():
            self.tables[name].index_copy_(0, ids, new)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.is_unattached:
            return state
        return {**state, "tables": {name: table.clone() for name, table in self.tables.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.is_unattached:
            expected, found = ({n: tuple(t.shape) for n, t in x.items()} for x in (self.tables, state["tables"]))
            if found != expected:
                raise ValueError(
                    f"Expected the checkpoint to have tables of shapes {expected}, but got {found}. Build the attack "
                    "on the model and with the `emb_name` that the checkpoint was written with."
                )
        super().load_state_dict(state)
        for name, table in self.tables.items():
            table.copy_(state["tables"][name])


def _new_rows(table: Tensor, parts: list[_Parts]) -> tuple[Tensor, Tensor]:
    """Return the ids at all positions, and the mean of each id's token parts, or its row where none is real."""
    ids = torch.cat([part.ids.flatten() for part in parts]).long()
    real = torch.cat([part.real.flatten() for part in parts]).unsqueeze(-1)
    token = torch.cat([part.token.flatten(0, -2) for part in parts])
    # summed in a buffer of the size of the batch, where equal ids share a slot: no synchronization
    slots = torch.searchsorted(ids.sort().values, ids)
    total = torch.zeros_like(token).index_add_(0, slots, token)[slots]
    count = torch.zeros_like(token[:, :1]).index_add_(0, slots, real.to(token.dtype))[slots]
    return ids, torch.where(count > 0, (total / count).to(table.dtype), table[ids])
