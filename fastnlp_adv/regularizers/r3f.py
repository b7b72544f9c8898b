"""R3F: the prediction should not change under noise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..method import Cost
from ..options import check_number, one_of, option, options
from ..taps import Lookup
from .perturbed import PerturbedRegularizer

__all__ = ["R3F"]


@options
class R3F(PerturbedRegularizer):
    r"""
    Robust representations through regularized finetuning (Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing
    Representational Collapse", https://arxiv.org/abs/2008.03156):

    .. math:: L + w\,\bigl[KL(p(e) \,\|\, p(e + z)) + KL(p(e + z) \,\|\, p(e))\bigr], \qquad
        z \sim N(0, \epsilon^2 I) \text{ or } U(-\epsilon, \epsilon),

    with gradients through both predictions. A step costs two plain ones.

    The paper has ``epsilon=1e-5``, which is so little that with one dropout mask for both passes two predictions differ
    by about 1e-5 or less: float32 can resolve that to a few percent, float16 and bfloat16 not at all. With a new mask
    in each pass, the term is then the divergence between the masks, as in R-Drop. The default here is larger, so that
    the noise counts: twice the spread of the coordinates of a small BERT, which normalizes what the lookup returns.
    Take less where coordinates are smaller and nothing normalizes them.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are not written.
    :options:
    :raises ValueError: if an argument is out of range, or ``emb_name`` matches no embedding.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> def step(batch):
        ...     pred = model(batch["ids"])
        ...     return {"loss": nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred}
        >>> r3f = R3F(model, epsilon=0.1)
        >>> outputs = r3f(step, {"ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([0])})
        >>> outputs["loss"].backward()
        >>> bool(outputs["r3f"] > 0)
        True
        >>> r3f.close()
    """

    epsilon: float = option(
        default=0.1,
        check=check_number,
        doc="the standard deviation of the noise in each coordinate, or its largest size, in the units of the "
        "embedding",
        kw_only=False,
    )
    weight: float = option(default=1.0, check=check_number, doc="the weight :math:`w` of the divergence")
    noise: Literal["normal", "uniform"] = option(
        default="normal", check=one_of("normal", "uniform"), doc='``"normal"`` or ``"uniform"``'
    )

    paper = "https://arxiv.org/abs/2008.03156"

    name = "r3f"

    @property
    def cost(self) -> Cost:
        return Cost(2, 2, 0)

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        if self.noise == "normal":
            noise = self.normal(output)
        else:
            noise = self.stream.like(output).uniform_(-1, 1, generator=self.stream.on(output.device))
        return torch.where(lookup.real(), self.epsilon * noise, 0)
