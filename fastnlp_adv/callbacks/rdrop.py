"""R-Drop as a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastNLP import logger
from torch import Tensor, nn

from ..regularizers import RDrop, RDropMixin, has_dropout
from .regularizer import RegularizerCallback

__all__ = ["RDropCallback"]


class RDropCallback(RegularizerCallback):
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

    method_class = RDrop
    _mixin: RDropMixin | None = None

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
        super().__init__(
            kl_weight=kl_weight,
            reduction=reduction,
            divergence=divergence,
            mode=mode,
            mask=mask,
            start=start,
            every=every,
            log_every=log_every,
        )

    def build(self, model: nn.Module) -> RDrop:
        return RDrop(**self.settings())

    def check_model(self, model: nn.Module) -> None:
        if not has_dropout(model):
            logger.rank_zero_warning(
                "R-Drop compares two dropout masks, but this model has no dropout above 0, so the divergence is 0 and "
                "training is plain, at twice the price. Give the model dropout, or remove RDropCallback."
            )

    def begin(self, trainer: Any) -> None:
        super().begin(trainer)
        model = trainer.driver.unwrap_model()
        self._mixin = model if isinstance(model, RDropMixin) else None

    def end(self) -> None:
        super().end()
        self._mixin = None

    def regularize(
        self, objective: Callable[[Any], Any], forward: Callable[[Any], Any], due: bool, no_sync: Callable
    ) -> Callable[[Any], Any]:
        mixin = self._mixin
        if mixin is None:
            return super().regularize(objective, forward, due, no_sync)

        def through_mixin(batch: Any) -> Any:
            with mixin.rdrop_as(self.method_ if due else None):
                return objective(batch)

        return through_mixin
