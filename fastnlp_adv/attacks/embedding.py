"""Attacks on the lookups of embeddings by steps of steepest ascent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, cast

from torch import Tensor

from ..arguments import arguments
from ..functional import ascend, project, random_in_ball
from ..taps import Tap, fits, taps_on
from .base import Attack

__all__ = ["EmbeddingAttack"]


@arguments
class EmbeddingAttack(Attack):
    """
    An attack on the lookups of embeddings by steps of steepest ascent.

    :param model: the model.
    """

    # What a method has no argument for. Without annotations, which would make arguments of them.
    epsilon = cast(Any, 0.0)
    emb_name = cast(Any, None)
    granularity = cast(Any, "sequence")
    norm = cast(Any, "l2")
    dropout_mask = cast(Any, "new")

    def __post_init__(self) -> None:
        super().__post_init__()
        taps = taps_on(self.model, self.emb_name, self.granularity)
        self.set_up(self.model, taps, self.dropout_mask)

    def describe(self) -> str:
        shared = {"vocab": "shared by the micro-batch", "sequence": "per example", "token": "per token"}
        size = f"epsilon {self.epsilon:g}"
        if self.norm == "linf":
            return f"{super().describe()}: {size} in each coordinate"
        rows = [tap.row_length() for tap in self.embedding_taps]
        row = rows[0] if len(rows) == len(self.taps) == 1 else None
        in_rows = f" = {self.epsilon / row:.2g} rows" if row else ""
        return f"{super().describe()}: {size}{in_rows}, {shared[self.granularity]}"

    def ascend(self, step: float, *, radius: float | None = None, taps: list[Tap] | None = None) -> None:
        """
        Move every perturbation along its gradient.

        :param step: the length of the ascent step.
        :param radius: that of the ball to project back to; ``None`` for none.
        :param taps: where; everywhere if ``None``.
        """
        moved = []
        for tap in self.taps if taps is None else taps:
            deltas, values = tap.deltas(), []
            for delta in deltas:
                delta.value = ascend(delta.value, delta.grad, step, dims=delta.dims, norm=self.norm)
                if radius is not None:
                    delta.value = project(delta.value, radius, dims=delta.dims, norm=self.norm)
                values.append(delta.value)
            tap.perturb(values)
            moved.append(deltas)
        self.record(moved)

    def randomize(self, radius: float) -> None:
        """Start every perturbation at a random point of its ball."""
        for tap in self.taps:
            tap.perturb(
                [
                    random_in_ball(
                        delta.value,
                        radius,
                        dims=delta.dims,
                        norm=self.norm,
                        free=delta.free,
                        generator=self.stream.on(delta.value.device),
                    )
                    for delta in tap.deltas()
                ]
            )

    def record_start(self) -> None:
        """Note the norms of a pass at where the perturbations started, for a step without an ascent step."""
        self.record([tap.deltas() for tap in self.taps])

    def inner_passes(self, closure: Callable[[], Tensor]) -> None:
        """Run, in a plain loop, all passes between the clean one and the adversarial one."""
        for each in self.passes():
            if each.last:
                return
            if not each.trains:
                self.gradient_of(closure)

    def gradient_of(self, closure: Callable[[], Tensor]) -> None:
        """Run the model and differentiate its loss with respect to the embeddings alone."""
        for tap in self.taps:
            tap.begin_pass(keep_leaves=True)
        with self.precision():
            loss = closure()
        self.differentiate(loss)

    def restore(self, emb_name: str | None = None) -> None:
        """
        Take the perturbation off.

        :param emb_name: only that of the embeddings of this name.
        """
        for tap in self._chosen(emb_name):
            tap.reset()

    def _until_restored(self, perturb: Callable[[], None]) -> AbstractContextManager[Any]:
        with ExitStack() as stack:
            stack.callback(self.restore)  # at once, if perturbing fails halfway
            perturb()
            return stack.pop_all()

    def _chosen(self, emb_name: str | None) -> list[Tap]:
        taps = [tap for tap in self.taps if emb_name is None or fits(tap.name, emb_name)]
        if not taps:
            raise ValueError(
                f"Expected `emb_name` to name an embedding that this attack watches, but got {emb_name!r}. It watches "
                f"{', '.join(f'`{tap.name}`' for tap in self.taps)}; give `emb_name` when the attack is built."
            )
        return taps
