"""Virtual adversarial training: the prediction should not change in the direction in which it changes most."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ..arguments import Arguments, Cost, argument, arguments, check_positive, shared
from ..functional import steepest_direction
from ..taps import Delta, Lookup
from .perturbed import PerturbedRegularizer

__all__ = ["VAT", "VATArguments"]


@arguments
class VATArguments(Arguments):
    epsilon: float = argument(1.0, "the norm of the perturbation of an example, in the units of the embedding")
    xi: float = argument(
        1e-2,
        "the length at which the direction is sought, in the same units: small, but not lost in the rounding of the "
        "logits; float16 and bfloat16 need a larger one",
        check_positive,
    )
    steps: int = argument(1, "the number of power iterations")
    weight: float = argument(1.0, "the weight :math:`w` of the divergence")
    emb_name: Optional[str] = shared.emb_name(". Embeddings only")
    divergence: shared.Divergence = shared.divergence(". Here from the clean to the perturbed prediction")
    reduction: shared.Reduction = shared.reduction()
    mask: shared.Mask = shared.mask()
    dropout_mask: shared.DropoutMask = shared.dropout_mask()

    @property
    def cost(self) -> Cost:
        """The passes of a step."""
        return Cost(2 + self.steps, 2, self.steps)


@arguments
class VAT(VATArguments, PerturbedRegularizer):
    r"""
    Virtual adversarial training (Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", https://arxiv.org/abs/1704.03976):

    .. math:: L + w\,KL\bigl(p(e) \,\|\, p(e + \epsilon d)\bigr), \qquad
        d \leftarrow g / \lVert g \rVert_2, \quad g = \nabla_d KL\bigl(p(e) \,\|\, p(e + \xi d)\bigr),

    where :math:`p(e)` is held constant and :math:`d` starts at a random direction. ``steps`` times :math:`d` is
    replaced; each is a step of the power iteration for the direction in which the divergence grows fastest. The norms
    are over each example. An example without a gradient, or with one that is not finite, is not perturbed.

    No labels are needed: a batch whose outputs hold no ``loss`` is trained on this term alone.

    A step costs ``2 + steps`` forward passes, one backward pass through two of them, and ``steps`` backward passes that
    end at the embeddings: 2 + 2/3 plain steps by default.

    :param model: the model; its weights are not written.
    :arguments:
    :raises ValueError: if an argument is out of range, or ``emb_name`` matches no embedding.

    Example::

        >>> from torch import nn
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

    paper = "https://arxiv.org/abs/1704.03976"

    name = "vat"
    needs_loss = False
    symmetric = False

    def start(self, lookup: Lookup, output: Tensor) -> Tensor:
        noise = torch.where(lookup.real(), self.normal(output), 0)
        return self.xi * steepest_direction(noise, dims=tuple(range(1, output.dim())))

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        return (self.epsilon if last else self.xi) * steepest_direction(delta.grad, dims=delta.dims)
