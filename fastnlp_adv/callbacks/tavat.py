"""TA-VAT as a callback."""

from __future__ import annotations

from ..attacks.tavat import TAVAT
from .base import AttackCallback

__all__ = ["TAVATCallback"]


class TAVATCallback(AttackCallback):
    r"""
    Trains with token-aware virtual adversarial training, :class:`~fastnlp_adv.TAVAT`: each batch ``steps`` times, at a
    perturbation of the example and one of its tokens. That of the tokens is kept from batch to batch, and saved.

    :param epsilon: the radius of the ball around the clean input, in the units of the embedding; 0 for none.
    :param alpha: the length of a climb.
    :param steps: the number of passes; a batch costs as much as this many plain ones.
    :param init: the size of the noise.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding. Embeddings only.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = TAVATCallback(epsilon=0.5, steps=2)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = TAVAT

    def __init__(
        self,
        epsilon: float = 0.5,
        *,
        alpha: float = 0.05,
        steps: int = 2,
        init: float = 0.2,
        emb_name: str | None = None,
        dropout_mask: str = "new",
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(
            epsilon=epsilon,
            alpha=alpha,
            steps=steps,
            init=init,
            emb_name=emb_name,
            dropout_mask=dropout_mask,
            start=start,
            every=every,
            log_every=log_every,
        )
