"""R-Drop as a callback."""

from __future__ import annotations

from fastNLP import logger
from torch import nn

from ..arguments import arguments
from ..regularizers import RDrop, has_dropout
from ..regularizers.rdrop import RDropArguments
from .base import RegularizerCallback

__all__ = ["RDropCallback"]


@arguments
class RDropCallback(RegularizerCallback, RDropArguments):
    r"""
    Train with R-Drop, :class:`~fastnlp_adv.RDrop`, any model whose ``train_step`` returns ``loss`` and ``pred`` (or
    ``logits``). A model with :class:`~fastnlp_adv.RDropMixin` is run with the callback's settings instead of its own.

    :arguments:
    :raises ValueError: if an argument is out of range.

    Example::

        >>> callback = RDropCallback(kl_weight=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = RDrop

    def build(self, model: nn.Module) -> RDrop:
        return RDrop(**self.settings())

    def check_model(self, model: nn.Module) -> None:
        if not has_dropout(model):
            logger.rank_zero_warning(
                "R-Drop compares two dropout masks, but this model has no dropout above 0, so the divergence is 0 and "
                "training is plain, at twice the price. Give the model dropout, or remove RDropCallback."
            )
