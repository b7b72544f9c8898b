"""Virtual adversarial training: the prediction should not change in the direction in which it changes most."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_arguments, check_number
from ..functional import steepest_direction
from .mask import Mask
from .perturbed import PerturbedRegularizer

__all__ = ["VAT"]


class VAT(PerturbedRegularizer):
    r"""
    Virtual adversarial training (Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", https://arxiv.org/abs/1704.03976):

    .. math:: L + w\,KL\bigl(p(e) \,\|\, p(e + \epsilon d)\bigr), \qquad
        d \leftarrow g / \lVert g \rVert_2, \quad g = \nabla_d KL\bigl(p(e) \,\|\, p(e + \xi d)\bigr),

    where :math:`p(e)` is held constant and :math:`d` begins at a random direction. ``steps`` times :math:`d` is
    replaced; each is a step of the power iteration for the direction in which the divergence grows fastest. The norms
    are over each example. An example without a gradient, or with one that is not finite, is not perturbed.

    No labels are needed: a batch whose outputs hold no ``loss`` is trained on this term alone.

    A step costs ``2 + steps`` forward passes, one backward pass through two of them, and ``steps`` backward passes that
    end at the embeddings: 2 + 2/3 plain steps by default.

    :param model: the model; its weights are not written.
    :param epsilon: the norm of the perturbation of an example, in the units of the embedding.
    :param xi: the length at which the direction is sought, in the same units: small, but not lost in the rounding of
        the logits; float16 and bfloat16 need a larger one.
    :param steps: the number of power iterations.
    :param weight: the weight :math:`w`.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding; see
        :func:`~fastnlp_adv.embedding.find_embeddings`.
    :param divergence: see :class:`~fastnlp_adv.RDrop`; here from the clean to the perturbed prediction.
    :param reduction: see :class:`~fastnlp_adv.RDrop`.
    :param mask: see :class:`~fastnlp_adv.RDrop`.
    :param dropout_mask: ``"new"``: each pass draws its own dropout mask, and the divergence is also that between the
        masks; ``"same"``: all passes of a step share one, so that only the perturbation makes a difference.
    :raises ValueError: if an argument is out of range, or ``emb_name`` matches no embedding.

    Example::

        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> def step(batch):
        ...     return {"pred": model(batch["ids"])}    # no labels, no loss
        >>> vat = VAT(model, epsilon=1.0)
        >>> outputs = vat(step, {"ids": torch.tensor([[1, 2, 3], [4, 5, 6]])})
        >>> outputs["loss"].backward()
        >>> bool(outputs["vat"] > 0), torch.equal(outputs["vat"], outputs["loss"])
        (True, True)
        >>> vat.close()
    """

    name = "vat"
    needs_loss = False
    symmetric = False
    epsilon: float
    xi: float

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 1.0,
        xi: float = 1e-2,
        steps: int = 1,
        weight: float = 1.0,
        emb_name: str | None = None,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        reduction: str = "batchmean",
        mask: Mask = None,
        dropout_mask: str = "new",
    ):
        super().__init__(
            model,
            epsilon=epsilon,
            xi=xi,
            steps=steps,
            weight=weight,
            emb_name=emb_name,
            divergence=divergence,
            reduction=reduction,
            mask=mask,
            dropout_mask=dropout_mask,
        )

    @classmethod
    def check(cls, **arguments: Any) -> None:
        check_arguments(arguments, xi=partial(check_number, positive=True))

    def start(self, index: int, ids: Tensor, output: Tensor, real: Tensor) -> Tensor:
        noise = torch.where(real, self.normal(output), 0)
        return self.xi * steepest_direction(noise, dims=tuple(range(1, output.dim())))

    def climb(self, value: Tensor, grad: Tensor, dims: tuple[int, ...], *, last: bool) -> Tensor:
        return (self.epsilon if last else self.xi) * steepest_direction(grad, dims=dims)
