"""NEFTune as a callback."""

from __future__ import annotations

from ..arguments import arguments
from ..attacks.neftune import NEFTune, NEFTuneArguments
from .base import AttackCallback

__all__ = ["NEFTuneCallback"]


@arguments
class NEFTuneCallback(AttackCallback, NEFTuneArguments):
    r"""
    Train with noisy embeddings, :class:`~fastnlp_adv.NEFTune`: each batch once, with noise on its lookups.

    :arguments:
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = NEFTuneCallback(alpha=5.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = NEFTune
