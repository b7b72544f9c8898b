"""R3F as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..regularizers.r3f import R3F, R3FArguments
from .base import RegularizerCallback

__all__ = ["R3FCallback"]


@arguments
class R3FCallback(RegularizerCallback, R3FArguments):
    r"""
    Train with :class:`~fastnlp_adv.R3F`: the prediction should not change under noise.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = R3FCallback(epsilon=0.1)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = R3F
