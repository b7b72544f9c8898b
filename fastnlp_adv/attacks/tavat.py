"""TA-VAT: FreeLB with perturbations of tokens that are kept from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import ascend, group_norm, steepest_direction
from ..options import check_count, check_number, option, options
from ..taps import Delta, Lookup
from .base import Pass
from .freelb import FreeLB, noise_on_tokens

__all__ = ["TAVAT"]


@dataclass
class _Parts:
    """The perturbation of one lookup, in what lengths are given in."""

    ids: Tensor
    real: Tensor
    instance: Tensor
    token: Tensor
    #: what that is, in the units of the embedding
    size: Tensor | float

    def sum(self) -> Tensor:
        """Return the perturbation itself."""
        return (self.instance + self.token) * self.size


@options
class TAVAT(FreeLB):
    r"""
    Token-aware virtual adversarial training (Li & Qiu 2021, "Token-Aware Virtual Adversarial Training in Natural
    Language Understanding", https://arxiv.org/abs/2004.14543).

    The perturbation has two parts. :math:`\delta` belongs to the example and starts at the noise of
    :class:`~fastnlp_adv.FreeLB`; :math:`\eta` belongs to the tokens and starts at their rows in a table :math:`V` that
    is kept from step to step, :math:`\eta_0 = V[ids] / \lVert V[ids] \rVert_2` with the norm over all real tokens of
    the batch. The model trains on :math:`\frac{1}{K}\sum_{t=0}^{K-1} L(e + \delta_t + \eta_t)`, with
    :math:`g = \nabla_e L(e + \delta_t + \eta_t)` and, per example and per token :math:`i`,

    .. math:: \delta \leftarrow \delta + \alpha\, g / \lVert g \rVert_2, \qquad
        \eta_i \leftarrow \eta_i + \alpha\, g_i / \lVert g_i \rVert_2, \qquad
        \eta_i \leftarrow \eta_i\, \lVert \eta_i \rVert_2 / \max_j \lVert \eta_j \rVert_2,

    the maximum being over the example's tokens; then, where an example's :math:`\lVert \delta + \eta \rVert_2` is above
    ``epsilon``, both parts are scaled down to it. After the last pass the rows of the batch's tokens become their
    :math:`\eta`; for a token that stands at several positions, the mean over these. ``steps`` forward and backward
    passes, as many plain steps; no work in them grows with the vocabulary.

    The table starts uniform in :math:`(-1, 1)` times ``init`` :math:`/ \sqrt{H}`. It is as large as the embedding, in
    single precision, on its device, and part of :meth:`state_dict`. Padding (``padding_idx``) gets no perturbation and
    its row is not written; a group whose gradient is zero, infinite or NaN makes no step. A step that raises leaves the
    table alone; under gradient accumulation each micro-batch writes it. When a forward looks up an embedding several
    times, each lookup has norms of its own, and the mean is over the positions of all. In distributed training each
    rank has a table of its own, and a checkpoint holds that of the first.

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

    def make_memory(self, model: nn.Module) -> None:
        self.tables = {
            tap.name: self._new_table(tap.embedding.shape, tap.embedding.weight.device) for tap in self.embedding_taps
        }

    def passes(self) -> Iterator[Pass]:
        weight = 1 / self.steps
        begun: dict[str, dict[int, _Parts]] = {tap.name: {} for tap in self.embedding_taps}
        for tap in self.embedding_taps:
            size = tap.unit * self.strength
            tap.start = partial(self._start_of, size, self.tables[tap.name], begun[tap.name])
        yield Pass(weight=weight, adversarial=True, last=self.steps == 1)
        deltas = [tap.deltas() for tap in self.taps]
        parts = {tap.name: [begun[tap.name][d.number] for d in own] for tap, own in zip(self.taps, deltas, strict=True)}
        if self.steps == 1:
            self.record(deltas)
        for left in reversed(range(self.steps - 1)):
            self._ascend(parts, deltas)
            yield Pass(weight=weight, adversarial=True, last=left == 0)
            if left:
                deltas = [tap.deltas() for tap in self.taps]
        self._keep(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold: the stream of the noise, and the tables."""
        tables = {name: table.clone() for name, table in self.tables.items()}
        return {**super().state_dict(), "tables": tables} if not self.is_unattached else super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where :meth:`state_dict` was taken.

        :raises ValueError: if the tables are those of other embeddings.
        """
        if self.is_unattached:
            super().load_state_dict(state)
            return
        expected, found = ({n: tuple(t.shape) for n, t in tables.items()} for tables in (self.tables, state["tables"]))
        if found != expected:
            raise ValueError(
                f"Expected the checkpoint's token perturbations to be those of {expected}, but got {found}. Build the "
                "attack on the model and with the `emb_name` that the checkpoint was written with."
            )
        super().load_state_dict(state)
        for name, table in self.tables.items():
            table.copy_(state["tables"][name])

    def _new_table(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        table = torch.empty(shape, dtype=torch.float32, device=device)
        return table.uniform_(-1, 1, generator=self.stream.on(device)).mul_(self.init / shape[-1] ** 0.5)

    def _start_of(
        self, size: Tensor | float, table: Tensor, begun: dict[int, _Parts], lookup: Lookup, output: Tensor
    ) -> Tensor:
        ids, real = lookup.ids, lookup.real()
        if ids.device != table.device:
            raise RuntimeError(
                f"Expected the model to stay on the device that the attack was built on, {table.device}, but got ids "
                f"on {ids.device}. Build the attack after the model has been moved."
            )
        instance = noise_on_tokens(self.stream, self.init, output, real)
        rows = torch.where(real, table[ids].to(instance.dtype), 0)
        token = steepest_direction(rows, dims=tuple(range(rows.dim())))
        begun[lookup.number] = parts = _Parts(ids, real, instance, token, size)
        return parts.sum()

    def _ascend(self, parts: dict[str, list[_Parts]], deltas: list[list[Delta]]) -> None:
        for tap, own in zip(self.taps, deltas, strict=True):
            for part, delta in zip(parts[tap.name], own, strict=True):
                self._move(part, delta)
                delta.value = part.sum()
            tap.perturb([delta.value for delta in own])
        self.record(deltas)

    def _move(self, part: _Parts, delta: Delta) -> None:
        part.instance = ascend(part.instance, delta.grad, self.alpha, dims=delta.dims)
        part.token = ascend(part.token, delta.grad, self.alpha, dims=(-1,))
        sizes = group_norm(part.token, dims=(-1,))
        largest = group_norm(sizes, dims=delta.dims, norm="linf")
        part.token = part.token * torch.where(largest > 0, sizes / largest, 0)
        if self.epsilon > 0:
            size = group_norm(part.instance + part.token, dims=delta.dims)
            shrink = torch.where(size > self.epsilon, self.epsilon / size, 1)
            part.instance, part.token = part.instance * shrink, part.token * shrink

    def _keep(self, parts: dict[str, list[_Parts]]) -> None:
        """Set the rows of the tokens to the mean of their parts. Everything is computed before anything is written."""
        rows = {name: _new_rows(self.tables[name], each) for name, each in parts.items() if each}
        for name, (ids, new) in rows.items():
            self.tables[name].index_copy_(0, ids, new)


def _new_rows(table: Tensor, parts: list[_Parts]) -> tuple[Tensor, Tensor]:
    """
    Return the ids at all positions and the new row of each, the same wherever an id stands. As in ``ByToken``
    the mean is taken in a buffer of the size of the batch, so that the device tells the host nothing.
    """
    ids = torch.cat([part.ids.flatten() for part in parts]).long()
    real = torch.cat([part.real.flatten() for part in parts]).unsqueeze(-1)
    token = torch.cat([part.token.flatten(0, -2) for part in parts])
    slots = torch.searchsorted(ids.sort().values, ids)
    total = torch.zeros_like(token).index_add_(0, slots, token)[slots]
    count = torch.zeros_like(token[:, :1]).index_add_(0, slots, real.to(token.dtype))[slots]
    return ids, torch.where(count > 0, (total / count).to(table.dtype), table[ids])
