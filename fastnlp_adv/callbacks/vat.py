"""Virtual adversarial training as a callback."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..regularizers.vat import VAT
from .regularizer import RegularizerCallback

__all__ = ["VATCallback"]


class VATCallback(RegularizerCallback):
    r"""
    Trains with virtual adversarial training, :class:`~fastnlp_adv.VAT`: the prediction should not change in the
    direction in which it changes most. Batches whose outputs hold no ``loss`` train on this term alone; with ``start``
    or ``every`` they would not train in the steps between.

    :param epsilon: the norm of the perturbation of an example, in the units of the embedding.
    :param xi: the length at which the direction is sought.
    :param steps: the number of power iterations.
    :param weight: the weight of the divergence.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding.
    :param divergence: ``"categorical"``, ``"bernoulli"``, ``"mse"``, or a function of two predictions.
    :param reduction: ``"batchmean"``, ``"sum"`` or ``"mean"``.
    :param mask: a batch key or a function that tells which positions count.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in all passes of a step.
    :param start: see :class:`~fastnlp_adv.FGMCallback`.
    :param every: see :class:`~fastnlp_adv.FGMCallback`.
    :param log_every: see :class:`~fastnlp_adv.FGMCallback`.
    :raises ValueError: if an argument is out of range; when the Trainer is built, if ``emb_name`` matches no embedding.

    Example::

        >>> callback = VATCallback(epsilon=1.0)   # trainer = Trainer(..., callbacks=[callback])
    """

    method_class = VAT

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        xi: float = 1e-2,
        steps: int = 1,
        weight: float = 1.0,
        emb_name: str | None = None,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        reduction: str = "batchmean",
        mask: str | Callable | None = None,
        dropout_mask: str = "new",
        start: int | float = 0,
        every: int = 1,
        log_every: int = 0,
    ):
        super().__init__(
            epsilon=epsilon,
            xi=xi,
            steps=steps,
            weight=weight,
            emb_name=emb_name,
            divergence=divergence,
            reduction=reduction,
            mask=mask,
            dropout_mask=dropout_mask,
            start=start,
            every=every,
            log_every=log_every,
        )
