"""Virtual adversarial training as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..regularizers.vat import VAT, VATArguments
from .base import RegularizerCallback

__all__ = ["VATCallback"]


@arguments
class VATCallback(RegularizerCallback, VATArguments):
    r"""
    Train with virtual adversarial training, :class:`~fastnlp_adv.VAT`: the prediction should not change in the
    direction in which it changes most. Batches whose outputs hold no ``loss`` train on this term alone; with
    ``start`` or ``every`` they would not train in the steps between.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = VATCallback(epsilon=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = VAT
