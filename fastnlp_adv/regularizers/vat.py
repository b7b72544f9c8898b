"""Virtual adversarial training: the prediction should not change in the direction in which it changes most."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import steepest_direction
from ..method import Cost
from ..options import check_count, check_number, check_positive, option, options
from ..taps import Delta, Lookup
from .perturbed import PerturbedRegularizer

__all__ = ["VAT"]


@options
class VAT(PerturbedRegularizer):
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

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are not written.
    :options:
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

    epsilon: float = option(
        default=1.0,
        check=check_number,
        doc="the norm of the perturbation of an example, in the units of the embedding",
        kw_only=False,
    )
    xi: float = option(
        default=1e-2,
        check=check_positive,
        doc="the length at which the direction is sought, in the same units: small, but not lost in the rounding of "
        "the logits; float16 and bfloat16 need a larger one",
    )
    steps: int = option(default=1, check=check_count, doc="the number of power iterations")
    weight: float = option(default=1.0, check=check_number, doc="the weight :math:`w` of the divergence")

    paper = "https://arxiv.org/abs/1704.03976"

    name = "vat"
    needs_loss = False
    symmetric = False

    @property
    def cost(self) -> Cost:
        return Cost(2 + self.steps, 2, self.steps)

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        noise = torch.where(lookup.real(), self.normal(output), 0)
        return self.xi * steepest_direction(noise, dims=tuple(range(1, output.dim())))

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        return (self.epsilon if last else self.xi) * steepest_direction(delta.grad, dims=delta.dims)
