"""R-Drop as a callback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from fastNLP import logger
from torch import Tensor, nn

from ..regularizers import RDrop, RDropMixin, has_dropout
from .base import MethodCallback

__all__ = ["RDropCallback"]


class RDropCallback(MethodCallback):
    r"""
    Trains with R-Drop, :class:`~fastnlp_adv.RDrop`, any model whose ``train_step`` returns ``loss`` and ``pred`` (or
    ``logits``). A model with :class:`~fastnlp_adv.RDropMixin` is run with the callback's settings instead of its own.

    :param kl_weight: the weight of the divergence.
    :param reduction: ``"batchmean"``, ``"sum"`` or ``"mean"``.
    :param divergence: ``"categorical"``, ``"bernoulli"``, ``"mse"``, or a function of two predictions.
    :param mode: ``"concat"``, one forward of the doubled batch, or ``"two_pass"``.
    :param mask: a batch key or a function that tells which positions count.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range.

    Example::

        >>> callback = RDropCallback(kl_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        kl_weight: float = 1.0,
        *,
        reduction: str = "batchmean",
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        mode: str = "concat",
        mask: str | Callable | None = None,
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(start=start, every=every, log_every=log_every)
        self.kl_weight = kl_weight
        self.reduction = reduction
        self.divergence = divergence
        self.mode = mode
        self.mask = mask
        self.build()

    def build(self) -> RDrop:
        """The regularizer with this callback's settings."""
        return RDrop(
            self.kl_weight, reduction=self.reduction, divergence=self.divergence, mode=self.mode, mask=self.mask
        )

    def check_model(self, model: nn.Module) -> None:
        if not has_dropout(model):
            logger.rank_zero_warning(
                "R-Drop compares two dropout masks, but this model has no dropout above 0, so the divergence is 0 and training "
                "is plain, at twice the price. Give the model dropout, or remove RDropCallback."
            )

    def begin(self, trainer: Any) -> None:
        self.regularizer_ = self.build()
        self.no_sync_ = trainer.driver.get_model_no_sync_context()
        model = trainer.driver.unwrap_model()
        self.mixin_ = model if isinstance(model, RDropMixin) else None

    def end(self) -> None:
        self.regularizer_ = self.mixin_ = self.no_sync_ = None

    def regularize(self, forward: Callable[[Any], Any], due: bool) -> Callable[[Any], Any]:
        """The objective with R-Drop in it when it is due."""
        if self.mixin_ is not None:
            return self._through_mixin(forward, due)
        return self._around(forward) if due else forward

    def _around(self, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def objective(batch: Any) -> Any:
            # All forwards but the last stay out of distributed training: it expects one a backward pass.
            contexts = [self.no_sync_] if self.mode == "two_pass" else []

            def synchronized_last(batch: Any) -> Any:
                with contexts.pop()() if contexts else nullcontext():
                    return forward(batch)

            return self.regularizer_(synchronized_last, batch)

        return objective

    def _through_mixin(self, forward: Callable[[Any], Any], due: bool) -> Callable[[Any], Any]:
        def objective(batch: Any) -> Any:
            with self.mixin_.rdrop_as(self.regularizer_ if due else None):
                return forward(batch)

        return objective
