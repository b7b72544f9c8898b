"""What VAT, SMART and R3F share: the prediction is compared with the one at a perturbed embedding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..divergences import divergence
from ..tapped import Tapped, taps_on
from .base import Forward, Regularizer
from .mask import Mask, find_mask
from .outputs import read_outputs

__all__ = ["PerturbedRegularizer"]

# Only the direction of an inner gradient counts, and in float16 so small a divergence would leave none of it.
_INNER_SCALE = 2.0**10


class PerturbedRegularizer(Tapped, Regularizer):
    """
    Adds ``weight`` times the divergence between the prediction and that at ``e + d``. A method says where ``d`` begins,
    :meth:`start`, and how it climbs, :meth:`climb`. There is one perturbation a position of each lookup, its groups are
    the examples (the first dimension of the ids), and it is 0 at ``padding_idx``.

    :param model: the model.
    :param arguments: those of the method.
    """

    #: whether the objective has to give a loss
    needs_loss: ClassVar[bool] = True
    #: whether gradients flow through both predictions, and both directions of a KL divergence are summed
    symmetric: ClassVar[bool] = True
    steps: int = 0
    weight: float
    divergence: str | Callable[[Tensor, Tensor], Tensor]
    reduction: str
    mask: Mask

    def __init__(self, model: nn.Module, **arguments: Any):
        self.check(**arguments)
        vars(self).update(arguments)
        super().__init__(model, taps_on(model, arguments["emb_name"], "sequence"), arguments["dropout_mask"])
        for tap in self.embedding_taps:
            tap.mixes_passes = True

    @property
    def forwards(self) -> int:
        return 2 + self.steps

    @abstractmethod
    def start(self, index: int, ids: Tensor, output: Tensor, real: Tensor) -> Tensor:
        """Where the perturbation of a lookup begins; see :attr:`~fastnlp_adv.embedding_tap.EmbeddingTap.start`."""

    def climb(self, value: Tensor, grad: Tensor, dims: tuple[int, ...], *, last: bool) -> Tensor:
        """The perturbation after a step along the gradient of the divergence; ``last`` in the last step."""
        raise NotImplementedError

    def __call__(self, objective: Forward, batch: Any, forward: Forward | None = None) -> dict[str, Any]:
        """
        Run ``objective`` and the perturbed passes, and add the term to the loss.

        :param objective: takes a batch and returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or
            ``logits``), floating-point logits or values of shape ``(examples, ...)``.
        :param batch: what it takes.
        :param forward: the bare training step for the perturbed passes, whose losses are not used; ``objective`` if
            ``None``.
        :return: the outputs of ``objective`` as a dict, with the term in ``loss`` and, unweighted and detached, under
            the name of the method.
        :raises ValueError: if the outputs lack a prediction, or a loss where one is needed.
        :raises RuntimeError: if the embedding is not looked up, or looked up inside gradient checkpointing.
        """
        forward = objective if forward is None else forward
        try:
            with self.replay.step() as begin_pass:
                begin_pass()
                outputs = read_outputs(objective(batch), needs_loss=self.needs_loss)
                mask = find_mask(self.mask, batch, outputs)
                for lookups in self.embedding_taps:
                    lookups.start = self.start
                for left in reversed(range(self.steps)):
                    perturbed = self._predict(forward, batch, begin_pass, inner=True)
                    # Each example has a norm of its own, so their sum has the directions of any other reduction.
                    inner = self.distance(outputs["pred"].detach(), perturbed, mask, "sum")
                    self.differentiate(_INNER_SCALE * inner)
                    self._climb(last=left == 0)
                perturbed = self._predict(forward, batch, begin_pass)
        finally:
            for tap in self.taps:
                tap.reset()
        pred = outputs["pred"] if self.symmetric else outputs["pred"].detach()
        return self.add(outputs, self.name, self.weight, self.distance(pred, perturbed, mask))

    def add(self, outputs: dict[str, Any], name: str, weight: float, term: Tensor) -> dict[str, Any]:
        """The outputs with a term in the loss, which may still be missing, and under its own name."""
        loss = outputs.get("loss")
        loss = weight * term if loss is None else loss + weight * term
        return {**outputs, "loss": loss, name: term.detach()}

    def distance(self, pred: Tensor, other: Tensor, mask: Tensor | None, reduction: str | None = None) -> Tensor:
        """The divergence between two predictions. A squared error has one direction only."""
        return divergence(
            pred,
            other,
            kind=self.divergence,
            reduction=self.reduction if reduction is None else reduction,
            mask=mask,
            symmetric="sum" if self.symmetric and self.divergence != "mse" else None,
        )

    def normal(self, output: Tensor) -> Tensor:
        """Standard normal noise of the shape of a lookup's output."""
        return self.noise.like(output).normal_(generator=self.noise.on(output.device))

    def _predict(self, forward: Forward, batch: Any, begin_pass: Callable[[], None], *, inner: bool = False) -> Tensor:
        for tap in self.taps:
            tap.begin_pass(keep_leaves=inner)
        begin_pass()
        pred = read_outputs(forward(batch), needs_loss=False)["pred"]
        if not any(tap.looked_up for tap in self.embedding_taps):
            self.taps[0].gradients()  # says why nothing was perturbed
        return pred

    def _climb(self, *, last: bool) -> None:
        for tap in self.taps:
            grads = tap.gradients()
            tap.perturb([self.climb(v, g, dims, last=last) for (v, dims), g in zip(tap.values(), grads, strict=True)])
