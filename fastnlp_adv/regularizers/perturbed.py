"""What VAT, SMART and R3F share: the prediction is compared with the one at a perturbed embedding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import divergences, forwards
from ..method import OnEmbeddings, SharesDropout
from ..taps import Delta, Lookup, Tap, taps_on
from .base import Forward, Predictions, Regularizer, add_term
from .outputs import find_mask, read_outputs

__all__ = ["PerturbedRegularizer"]

# Only the direction of an inner gradient counts, and in float16 so small a divergence would leave none of it.
_INNER_SCALE = 2.0**10


class PerturbedRegularizer(SharesDropout, Predictions, OnEmbeddings, Regularizer):
    """
    Adds ``weight`` times the divergence between the prediction and that at ``e + d``. A method says where ``d`` starts,
    :meth:`start_at`, and how it moves, :meth:`ascend`. There is one perturbation per position of each lookup, its
    groups are the examples (the first dimension of the ids), and it is 0 at ``padding_idx``.
    """

    #: whether gradients flow through both predictions, and both directions of a KL divergence are summed
    symmetric: ClassVar[bool] = True

    # Attributes of methods without the argument.
    steps: int = 0
    weight: float = 1.0

    def find_taps(self, model: nn.Module) -> list[Tap]:
        taps = taps_on(model, self.emb_name, "sequence")
        for tap in taps:
            tap.mixes_passes = True  # type: ignore[attr-defined]
        return taps

    @abstractmethod
    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        """Return where the perturbation of a lookup starts; see ``EmbeddingTap.start``."""

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        """Return the perturbation after an ascent step on the divergence; ``last`` in the last step."""
        return delta.value

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        """
        Run ``objective`` and the perturbed passes, and add the term to the loss.

        :raises RuntimeError: if the embedding is not looked up, or looked up inside gradient checkpointing.
        """
        _ = self.attached
        bare = objective if forward is None else forward
        begin_pass = self.begin_dropout()
        try:
            begin_pass()
            for tap in self.taps:
                tap.begin_pass(is_read=False)
            outputs = read_outputs(forwards.run(objective, batch, last=False), needs_loss=self.needs_loss)
            mask = find_mask(self.mask, batch, outputs)
            elsewhere = self._elsewhere()
            for lookups in self.embedding_taps:
                lookups.start = self.start_at
            for left in reversed(range(0 if elsewhere else self.steps)):
                perturbed = self._predict(bare, batch, begin_pass, inner=True)
                # Each example has a norm of its own, so their sum has the directions of any other reduction.
                inner = self.distance(outputs["pred"].detach(), perturbed, mask, "sum")
                self.differentiate(_INNER_SCALE * inner)
                for tap in self.taps:
                    tap.perturb([self.ascend(delta, last=left == 0) for delta in tap.deltas()])
            perturbed = self._predict(bare, batch, begin_pass)
        finally:
            for tap in self.taps:
                tap.reset()
        pred = outputs["pred"] if self.symmetric else outputs["pred"].detach()
        term = self.distance(pred, perturbed, mask)
        return add_term(outputs, self.name, self.weight, 0 * term if elsewhere else term)

    def distance(self, pred: Tensor, other: Tensor, mask: Tensor | None, reduction: str | None = None) -> Tensor:
        """Return the divergence between two predictions. A squared error has one direction only."""
        return divergences.divergence(
            pred,
            other,
            kind=self.divergence,
            reduction=self.reduction if reduction is None else reduction,
            mask=mask,
            symmetric="sum" if self.symmetric and self.divergence != "mse" else None,
        )

    def normal(self, output: Tensor) -> Tensor:
        """Return standard normal noise of the shape of a lookup's output."""
        return self.stream.like(output).normal_(generator=self.stream.on(output.device))

    def _elsewhere(self) -> bool:
        """
        Tell whether the batch did not come to the embedding, though others did. The last pass runs all the same, since
        distributed training expects it.
        """
        for tap in self.embedding_taps:
            tap.had_grad = tap.had_grad or tap.has_lookups
        if any(tap.has_lookups for tap in self.embedding_taps) or not all(tap.had_grad for tap in self.embedding_taps):
            return False
        self.without_grad += 1
        return True

    def _predict(self, forward: Forward, batch: Any, begin_pass: Callable[[], None], *, inner: bool = False) -> Tensor:
        for tap in self.taps:
            tap.begin_pass(inner=inner, is_read=inner)
        begin_pass()
        pred: Tensor = read_outputs(forwards.run(forward, batch, bare=True, last=not inner), needs_loss=False)["pred"]
        if not any(tap.has_lookups for tap in self.embedding_taps):
            self.check_grad()  # says why nothing was perturbed, where nothing ever was
        return pred
