"""FreeLB as a callback."""

from __future__ import annotations

from ..attacks.freelb import FreeLB
from .base import AttackCallback

__all__ = ["FreeLBCallback"]


class FreeLBCallback(AttackCallback):
    r"""
    Trains with :class:`~fastnlp_adv.FreeLB`: each batch ``steps`` times, at a perturbation that starts at noise and
    climbs in between.

    :param epsilon: the radius of the ball around the clean input, in the units of the embedding; 0 for none.
    :param alpha: the length of a climb.
    :param steps: the number of passes; a batch costs as much as this many plain ones.
    :param init: the size of the noise.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding. Embeddings only.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step, as in the paper.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if nothing matches ``emb_name``.

    Example::

        >>> callback = FreeLBCallback(alpha=0.1, steps=3)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = FreeLB

    def __init__(
        self,
        epsilon: float = 0.0,
        *,
        alpha: float = 0.1,
        steps: int = 3,
        init: float = 0.05,
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
