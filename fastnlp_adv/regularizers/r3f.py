"""R3F: the prediction should not change under noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_arguments, check_choice
from .mask import Mask
from .perturbed import PerturbedRegularizer

__all__ = ["R3F"]


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

    :param model: the model; its weights are not written.
    :param epsilon: the standard deviation of the noise in each coordinate, or its largest size, in the units of the
        embedding.
    :param weight: the weight :math:`w`.
    :param noise: ``"normal"`` or ``"uniform"``.
    :param emb_name: part of a parameter's name, a glob, or ``None`` for the input embedding; see
        :func:`~fastnlp_adv.embedding.find_embeddings`.
    :param divergence: see :class:`~fastnlp_adv.RDrop`; here the sum of both directions. ``"mse"``, which has one, is
        the squared error.
    :param reduction: see :class:`~fastnlp_adv.RDrop`.
    :param mask: see :class:`~fastnlp_adv.RDrop`.
    :param dropout_mask: ``"new"`` in each pass, or the ``"same"`` in both.
    :raises ValueError: if an argument is out of range, or ``emb_name`` matches no embedding.

    Example::

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

    name = "r3f"
    epsilon: float

    def __init__(
        self,
        model: nn.Module,
        epsilon: float = 0.1,
        weight: float = 1.0,
        noise: str = "normal",
        emb_name: str | None = None,
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "categorical",
        reduction: str = "batchmean",
        mask: Mask = None,
        dropout_mask: str = "new",
    ):
        self.distribution = noise  # `self.noise` is the stream that it is drawn from
        super().__init__(
            model,
            epsilon=epsilon,
            weight=weight,
            noise=noise,
            emb_name=emb_name,
            divergence=divergence,
            reduction=reduction,
            mask=mask,
            dropout_mask=dropout_mask,
        )

    @classmethod
    def check(cls, **arguments: Any) -> None:
        check_arguments(arguments, noise=partial(check_choice, choices=("normal", "uniform")))

    def start(self, index: int, ids: Tensor, output: Tensor, real: Tensor) -> Tensor:
        if self.distribution == "normal":
            return torch.where(real, self.epsilon * self.normal(output), 0)
        noise = self.noise.like(output).uniform_(-1, 1, generator=self.noise.on(output.device))
        return torch.where(real, self.epsilon * noise, 0)
