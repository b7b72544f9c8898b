"""Counts what runs, so that costs can be compared without a clock."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: kernels that touch some rows of a table, however large it is: lookups, and what TA-VAT does to its table
BY_ROW = {"embedding", "index", "index_copy_"}
COPIES = {"clone", "copy_", "_to_copy", "cat", "repeat", "contiguous"}


class Recorder(TorchDispatchMode):
    """The operations that run: their names, whether a dimension is as large as the vocabulary, the bytes they make."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.operations = []
        self.accumulated = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        taken, given = (
            [t for t in torch.utils._pytree.tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]
            for tree in ((args, kwargs), out)
        )
        known = {t.untyped_storage()._cdata for t in taken}
        made = sum(t.numel() * t.element_size() for t in given if t.untyped_storage()._cdata not in known)
        large = any(size >= self.rows for t in taken + given for size in t.shape)
        name = func._schema.name.split("::")[1]
        if name != "detach":  # a name for what is there
            self.operations.append((name, large, made, sum(t.numel() * t.element_size() for t in given)))
        return out

    def accumulate(self, param):
        self.accumulated += 1

    def count(self, name):
        return sum(name == each for each, *_ in self.operations)

    def on_the_vocabulary(self):
        """Kernels over all rows of a table; one that gives a view computes nothing."""
        views = {"t", "view", "transpose", "expand"}
        return sum(large and name not in BY_ROW | views for name, large, _, _ in self.operations)

    def allocated(self):
        return sum(made for _, _, made, _ in self.operations)

    def copied(self):
        """The copies, and what the largest comes to."""
        sizes = [size for name, _, _, size in self.operations if name in COPIES]
        return len(sizes), max(sizes, default=0)
