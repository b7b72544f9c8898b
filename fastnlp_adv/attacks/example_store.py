"""What a method keeps of each training example from one epoch to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["ExampleStore", "Key"]


class Key(NamedTuple):
    """
    What a row of the store belongs to.

    :param tap: the name of the embedding.
    :param lookup: the number of the lookup in its pass.
    :param example: the index of the example in the data set.
    """

    tap: str
    lookup: int
    example: int


class ExampleStore:
    r"""
    One tensor per example and lookup, of shape ``(..., positions, features)``, on the CPU. Zeros at the end, which
    padding leaves there, take no room.

    :param dtype: in which they are stored.

    Example::

        >>> store, key = ExampleStore(torch.float16), Key("words", 0, example=7)
        >>> store.update(store.rows([key], torch.tensor([[[0.5], [1.0], [0.0]]])))
        >>> store.read([key], (4, 1))[0].flatten().tolist()   # padded to another length
        [0.5, 1.0, 0.0, 0.0]
        >>> store.nbytes()
        4
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._rows: dict[Key, Tensor] = {}

    def read(self, keys: list[Key], shape: tuple[int, ...]) -> Tensor | None:
        """Return the tensors of examples, each cut, or filled with 0, to ``shape``; ``None`` if all are new."""
        if not any(key in self._rows for key in keys):
            return None
        out = torch.zeros((len(keys), *shape), dtype=self.dtype)
        for place, key in zip(out, keys, strict=True):
            if key in self._rows:
                row = self._rows[key]
                common = tuple(slice(min(ours, theirs)) for ours, theirs in zip(row.shape, shape, strict=True))
                place[common] = row[common]
        return out

    def rows(self, keys: list[Key], values: Tensor) -> dict[Key, Tensor]:
        """Return what is to be stored of ``(examples, ..., positions, features)``, ready for :meth:`update`."""
        values = values.to(self.dtype).to("cpu")  # in this order, so that less travels; all examples at once
        used = (values != 0).any(-1).flatten(1, -2).any(1) if values.dim() > 3 else (values != 0).any(-1)
        lengths = (
            torch.cat([used.new_zeros((len(used), 1)), used], 1).mul(torch.arange(used.shape[1] + 1)).amax(1).numpy()
        )
        # clones, since a view would keep the values of the whole batch alive
        return {key: v[..., :n, :].clone() for key, v, n in zip(keys, values, lengths, strict=True)}

    def update(self, rows: dict[Key, Tensor]) -> None:
        """Store rows, all of them or, if interrupted before, none."""
        self._rows.update(rows)

    def nbytes(self) -> int:
        """Return the bytes of what is stored."""
        return sum(row.numel() * row.element_size() for row in self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the rows, packed into few tensors: one per example would be slow to write and to read."""
        groups: dict[tuple[str, int], list[Key]] = {}
        for key in self._rows:
            groups.setdefault((key.tap, key.lookup), []).append(key)
        return [
            {
                "tap": tap,
                "lookup": lookup,
                "examples": torch.tensor([key.example for key in keys]),
                "shapes": torch.tensor([self._rows[key].shape for key in keys]),
                "values": torch.cat([self._rows[key].flatten() for key in keys]),
            }
            for (tap, lookup), keys in groups.items()
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Take the rows of :meth:`state_dict`, in place of those that are there."""
        self._rows = {}
        for group in state:
            shapes = group["shapes"]
            pieces = group["values"].to(self.dtype).to("cpu").split(shapes.prod(1).tolist())
            for example, shape, piece in zip(group["examples"].tolist(), shapes.tolist(), pieces, strict=True):
                self._rows[Key(group["tap"], group["lookup"], example)] = piece.reshape(shape).clone()
