"""The gradient penalty: the loss of a sequence should be flat around its embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import nodes_of
from ..method import Cost, OnEmbeddings
from ..options import check_number, option, options
from ..taps import Tap, refuse_sharded, taps_on
from .base import Forward, Regularizer, add_term
from .outputs import read_loss

#: the nodes of a graph where a kernel, a custom function or a compiled model has no second derivative
_DEAD_ENDS = ("NotImplemented", "Error", "DelayedError", "CompiledFunctionBackward")


@options
class GradientPenalty(OnEmbeddings, Regularizer):
    r"""
    Penalizes the squared gradient at the embeddings ("double backpropagation", Drucker and LeCun 1992; on deep networks
    Ross and Doshi-Velez 2018, "Improving the Adversarial Robustness and Interpretability of Deep Neural Networks by
    Regularizing their Input Gradients", https://arxiv.org/abs/1711.09404):

    .. math:: L(e) + \frac{w}{2n} \sum_{i=1}^{n} \lVert \nabla_{e_i} L_i \rVert_2^2, \qquad
        \nabla_{e_i} L_i = n\, \nabla_{e_i} L(e)

    for :math:`n` examples whose losses :math:`L_i` are averaged to
    :math:`L`. Positions at ``padding_idx`` do not count. Where several lookups take part, their terms are added.

    The gradient is taken of the ``loss`` that the objective returns, with the terms of inner regularizers: not divided
    for accumulation, and not scaled for ``fp16=True``, where half-precision gradients below 6e-8 therefore count as 0.

    It costs one forward pass, one backward pass to the embeddings that keeps its graph, and one backward pass through
    both, of about two plain ones; activations take about twice the memory.

    Every kernel of the model must have a second derivative. Fused attention has none: transformers' models need
    ``attn_implementation="eager"``, others ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``. Recurrent layers have
    none in cuDNN: ``torch.backends.cudnn.flags(enabled=False)``; on the CPU they have one, but for ``nn.LSTM`` in older
    versions of torch: ``torch.backends.mkldnn.flags(enabled=False)``. Compiled models have none.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written.
    :options:
    :raises ValueError: if an argument is out of range, ``emb_name`` matches no embedding, or the model is sharded.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> def step(batch):
        ...     return {"loss": nn.functional.cross_entropy(model(batch["ids"]), batch["labels"])}
        >>> penalty = GradientPenalty(model, weight=0.1)
        >>> outputs = penalty(step, {"ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([0])})
        >>> outputs["loss"].backward()
        >>> bool(outputs["gradient_penalty"] > 0)
        True
        >>> penalty.close()
    """

    weight: float = option(default=0.1, check=check_number, doc="the weight :math:`w` of the penalty", kw_only=False)

    paper = "https://arxiv.org/abs/1711.09404"
    name = "gradient_penalty"

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 1)

    def find_taps(self, model: nn.Module) -> list[Tap]:
        # After the first backward pass only shards are left, while the second still needs the weights.
        refuse_sharded(model, "GradientPenalty, which differentiates twice,")
        return taps_on(model, self.emb_name, "sequence")

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        refuse_sharded(self.attached, "GradientPenalty, which differentiates twice,")  # it may be sharded by now
        try:
            for tap in self.taps:
                tap.begin_pass(inner=True)
            outputs = read_loss(objective(batch))
            self.differentiate(outputs["loss"], create_graph=True)
            penalty = torch.zeros_like(outputs["loss"])
            if self.check_grad():
                # half the squared gradient of each sequence's own loss, averaged over the sequences
                grads = [delta.grad for tap in self.taps for delta in tap.deltas()]
                halves = [g.square().sum() * ((len(g) if g.dim() > 1 else 1) / 2) for g in grads]
                penalty = torch.stack(halves).sum()
                if _dead_ends(penalty):
                    self._refuse(penalty)
            else:
                self.without_grad += 1
        finally:
            for tap in self.taps:
                tap.reset()
        return add_term(outputs, self.name, self.weight, penalty)

    def _refuse(self, penalty: Tensor) -> None:
        """Raise the error of the backward pass now, with a solution."""
        cause = None
        try:
            torch.autograd.grad(penalty, [leaf for tap in self.taps for leaf in tap.leaves], allow_unused=True)
        except RuntimeError as error:
            cause = error
        raise RuntimeError(
            "Expected every kernel of the model to have a second derivative, but got one without "
            f"({cause or 'a custom or a compiled function'}). For fused attention, give models of transformers "
            "`attn_implementation='eager'`, others `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` around training; "
            "for recurrent layers on a GPU, `torch.backends.cudnn.flags(enabled=False)`, on a CPU, "
            "`torch.backends.mkldnn.flags(enabled=False)`; do not compile the model."
        ) from cause


def _dead_ends(penalty: Tensor) -> bool:
    """Tell whether a backward pass would run a kernel without a second derivative."""
    return any(type(node).__name__ in _DEAD_ENDS for node in nodes_of(penalty))
