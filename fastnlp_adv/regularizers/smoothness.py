"""VAT, SMART and R3F: the prediction should be smooth around the embedded input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .. import forwards
from ..functional import group_norm, project, steepest_direction
from ..method import Cost, OnEmbeddings, SharesDropout
from ..options import check_count, check_number, check_positive, check_up_to_1, one_of, option, options
from ..taps import Delta, Lookup, Tap, refuse_sharded, taps_on
from ..taps.weight import moved_weights
from .base import Forward, Predictions, add_term
from .outputs import read_outputs, tensors_of

# Only the direction of an inner gradient counts, and a divergence as small as this would vanish in float16.
_INNER_SCALE = 2.0**10


class Smoothness(SharesDropout, OnEmbeddings, Predictions):
    """
    Adds the divergence between the predictions at ``e`` and ``e + d``. A method defines where ``d`` starts and how it
    moves; it is 0 at ``padding_idx``. Gradients flow through both predictions if the divergence is symmetric.
    """

    symmetric: ClassVar[str | None] = "sum"
    # Attributes of methods without the argument.
    steps: int = 0
    weight: float = 1.0
    bregman_weight: float = 0.0

    def find_taps(self, model: nn.Module) -> list[Tap]:
        return taps_on(model, self.emb_name, "sequence")

    @property
    def cost(self) -> Cost:
        return Cost(2 + self.steps + (self.bregman_weight > 0), 2, self.steps)

    @abstractmethod
    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        """Return where the perturbation of a lookup starts; see ``EmbeddingTap.start``."""

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        """Return the perturbation after an ascent step on the divergence; ``last`` in the last step."""
        return delta.value

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        _ = self.attached
        run = partial(self._run, batch, self.begin_dropout())
        bare = objective if forward is None else forward
        try:
            outputs = run(objective, "clean")
            clean = tensors_of(outputs["pred"])
            fixed, masks = [pred.detach() for pred in clean], self.masks(batch, outputs, None)
            # Some batches of a multi-task training do not use the embedding; all ranks run the last pass all the same.
            elsewhere = not any(tap.has_lookups for tap in self.embedding_taps)
            self.without_grad += elsewhere
            for lookups in self.embedding_taps:
                lookups.start, lookups.mixes_passes = self.start_at, True
            for left in reversed(range(0 if elsewhere else self.steps)):
                # Each example has a norm of its own: reductions of one prediction have the directions of the sum.
                reduction = "sum" if len(fixed) == 1 else None
                inner = self.distance(fixed, run(bare, "inner")["pred"], masks, reduction)
                self.differentiate(_INNER_SCALE * inner)
                for tap in self.taps:
                    tap.perturb([self.ascend(delta, last=left == 0) for delta in tap.deltas()])
            perturbed = run(bare, "last")["pred"]
        finally:
            for tap in self.taps:
                tap.reset()
        term = self.distance(clean if self.symmetric else fixed, perturbed, masks)
        return add_term(outputs, self.name, self.weight, 0 * term if elsewhere else term)

    def draw(self, lookup: Lookup, output: Tensor, draw: Callable[..., Tensor] = Tensor.normal_) -> Tensor:
        """Return noise of the shape of a lookup's output, 0 at ``padding_idx``."""
        return torch.where(lookup.real(), draw(self.stream.like(output), generator=self.stream.on(output.device)), 0)

    def _run(self, batch: Any, begin_dropout: Callable[[], None], step: Forward, kind: str) -> dict[str, Any]:
        for tap in self.taps:
            tap.begin_pass(inner=kind == "inner", is_read=kind == "inner")
        begin_dropout()
        with self.inner_forward() if kind == "inner" else nullcontext():
            returned = forwards.run(step, batch, bare=kind != "clean", last=kind == "last")
        outputs = read_outputs(returned, needs_loss=kind == "clean" and self.needs_loss, several=True)
        for lookups in self.embedding_taps:
            lookups.had_grad = lookups.had_grad or lookups.has_lookups
        if not any(lookups.has_lookups for lookups in self.embedding_taps):
            self.check_grad()  # raises where there never was a lookup
        return outputs


@options
class VAT(Smoothness):
    r"""
    Virtual adversarial training (Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", https://arxiv.org/abs/1704.03976):

    .. math:: L + w\,KL\bigl(p(e) \,\|\, p(e + \epsilon d)\bigr), \qquad
        d \leftarrow g / \lVert g \rVert_2, \quad g = \nabla_d KL\bigl(p(e) \,\|\, p(e + \xi d)\bigr),

    where :math:`p(e)` is held constant and :math:`d` starts at a random direction. ``steps`` times :math:`d` is
    replaced; each is a step of the power iteration for the direction in which the divergence grows fastest. The norms
    are over each example. An example without a gradient, or with one that is not finite, is not perturbed. No labels
    are needed: a batch whose outputs hold no ``loss`` is trained on this term only.

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
        default=1.0, check=check_number, doc="the norm of an example's perturbation, in embedding units", kw_only=False
    )
    xi: float = option(
        default=1e-2,
        check=check_positive,
        doc="the length at which the direction is sought, in the same units; float16 and bfloat16 need a larger one",
    )
    steps: int = option(default=1, check=check_count, doc="the number of power iterations")
    weight: float = option(default=1.0, check=check_number, doc="the weight :math:`w` of the divergence")

    paper = "https://arxiv.org/abs/1704.03976"
    name = "vat"
    needs_loss = False
    symmetric = None

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        return self.xi * steepest_direction(self.draw(lookup, output), dims=tuple(range(1, output.dim())))

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        return (self.epsilon if last else self.xi) * steepest_direction(delta.grad, dims=delta.dims)


@options
class SMART(Smoothness):
    r"""
    Smoothness-inducing adversarial regularization with Bregman proximal point optimization (Jiang et al. 2020, "SMART:
    Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled Regularized
    Optimization", https://arxiv.org/abs/1911.03437):

    .. math:: L + w\,D\bigl(p(e), p(e + d)\bigr) + \mu\,D\bigl(p_\theta(e), p_{\tilde\theta}(e)\bigr), \qquad
        d \leftarrow \Pi_\epsilon\bigl(d + \alpha\, g / \lVert g \rVert_\infty\bigr), \quad
        g = \nabla_d D\bigl(p(e), p(e + d)\bigr),

    where :math:`D` is the sum of both KL divergences, :math:`d` starts at :math:`N(0, \mathrm{noise}^2)` and takes
    ``steps`` ascent steps, :math:`\Pi_\epsilon` keeps each coordinate within ``epsilon``, and the norm is over each
    example. An example without a gradient, or with one that is not finite, keeps its perturbation. Gradients of the
    first divergence flow through both predictions. :math:`\tilde\theta \leftarrow \beta\tilde\theta + (1 -
    \beta)\theta` after each step of the optimizer (in a plain loop call :meth:`after_step`), held constant, of the
    parameters that require a gradient when this is built; nothing is kept of them if :math:`\mu` is 0.

    A step costs as much as one of :class:`VAT`, with ``bregman_weight`` one forward pass more.
    The paper's ``epsilon=1e-5, alpha=1e-3, noise=1e-5`` change predictions by about 1e-5 or less. With one dropout mask
    for all passes float32 can resolve that to a few percent, float16 and bfloat16 not at all; with a new mask in each
    pass, the term is then the divergence between the masks, as in R-Drop. The defaults here are larger.

    :param model: the model, or ``None`` to :meth:`attach` it later. Its weights are written, and put back, for
        ``bregman_weight`` only.
    :options:
    :raises ValueError: if an argument is out of range, ``emb_name`` matches no embedding, or ``bregman_weight`` is not
        0 on a model that is sharded.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> def step(batch):
        ...     pred = model(batch["ids"])
        ...     return {"loss": nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred}
        >>> smart = SMART(model, epsilon=0.1, alpha=0.1, noise=0.01)
        >>> outputs = smart(step, {"ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([0])})
        >>> outputs["loss"].backward()
        >>> bool(outputs["smart"] > 0)
        True
        >>> smart.close()
    """

    epsilon: float = option(
        default=1e-2, check=check_number, doc="how far each coordinate may move, in embedding units", kw_only=False
    )
    alpha: float = option(default=1e-2, check=check_number, doc="how far an ascent step moves the steepest coordinate")
    noise: float = option(default=1e-3, check=check_positive, doc="the standard deviation of the start")
    steps: int = option(default=1, check=check_count, doc="the number of ascent steps")
    weight: float = option(default=1.0, check=check_number, doc="the weight :math:`w` of the smoothness")
    bregman_weight: float = option(default=0.0, check=check_number, doc="the weight :math:`\\mu` of the proximal point")
    bregman_beta: float = option(default=0.99, check=check_up_to_1, doc="the momentum :math:`\\beta` of the average")

    paper = "https://arxiv.org/abs/1911.03437"
    name = "smart"
    fixed = Smoothness.fixed | {"bregman_weight"}

    def _forget(self) -> None:
        super()._forget()
        self._averages: dict[str, tuple[nn.Parameter, Tensor]] = {}  # of parameters, by name

    def find_taps(self, model: nn.Module) -> list[Tap]:
        if self.bregman_weight:
            refuse_sharded(model, "`bregman_weight`, which swaps the weights,")
        return super().find_taps(model)

    def make_memory(self, model: nn.Module) -> None:
        super().make_memory(model)
        for name, p in model.named_parameters() if self.bregman_weight else ():
            if p.requires_grad:  # in at least single precision: bfloat16 would round most updates away
                self._averages[name] = p, self.stream.like(p).copy_(p.detach())

    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        if not self.bregman_weight:
            return super().regularize(objective, batch, forward)
        begin_pass = self.begin_dropout()
        begin_pass()
        old = self._prediction_of_average(objective if forward is None else forward, batch)
        begin_pass()  # the other passes begin where this one did
        outputs = super().regularize(objective, batch, forward)
        term = self.distance(outputs["pred"], old, self.masks(batch, outputs, None))
        return add_term(outputs, "bregman", self.bregman_weight, term)

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        return self.noise * self.draw(lookup, output)

    def ascend(self, delta: Delta, *, last: bool) -> Tensor:
        peak = group_norm(delta.grad, dims=delta.dims, norm="linf")
        direction = torch.where(peak.isfinite() & (peak > 0), delta.grad / peak, 0)
        return project(delta.value + self.alpha * direction, self.epsilon, dims=delta.dims, norm="linf")

    @torch.no_grad()
    def after_step(self) -> None:
        for p, average in self._averages.values():
            average.lerp_(p.to(average.dtype), 1 - self.bregman_beta)

    def state_dict(self) -> dict[str, Any]:
        averages = {} if self.is_unattached else {"average": {n: a.clone() for n, (_, a) in self._averages.items()}}
        return {**super().state_dict(), **averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, value in state.get("average", {}).items():
            if name in self._averages:
                self._averages[name][1].copy_(value)

    @torch.no_grad()
    def _prediction_of_average(self, forward: Forward, batch: Any) -> Any:
        # before any graph of this step exists, since autograd refuses weights that are written after their use
        weights: list[Tensor] = [p for p, _ in self._averages.values()]
        with moved_weights(weights, [torch.empty_like(p) for p in weights]):
            for p, average in self._averages.values():
                p.copy_(average)
            returned = forwards.run(forward, batch, bare=True, last=False)
            return read_outputs(returned, needs_loss=False, several=True)["pred"]


@options
class R3F(Smoothness):
    r"""
    Robust representations through regularized finetuning (Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing
    Representational Collapse", https://arxiv.org/abs/2008.03156):

    .. math:: L + w\,\bigl[KL(p(e) \,\|\, p(e + z)) + KL(p(e + z) \,\|\, p(e))\bigr], \qquad
        z \sim N(0, \epsilon^2 I) \text{ or } U(-\epsilon, \epsilon),

    with gradients through both predictions. A step costs two plain ones.
    The default is twice the spread of the coordinates of a small BERT, which normalizes the lookup's output; take less
    where coordinates are smaller and nothing normalizes them. About the paper's ``epsilon=1e-5`` see :class:`SMART`.

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
        doc="the standard deviation of the noise in each coordinate, or its bound, in embedding units",
        kw_only=False,
    )
    weight: float = option(default=1.0, check=check_number, doc="the weight :math:`w` of the divergence")
    noise: Literal["normal", "uniform"] = option(
        default="normal", check=one_of("normal", "uniform"), doc='``"normal"`` or ``"uniform"``'
    )

    paper = "https://arxiv.org/abs/2008.03156"
    name = "r3f"

    def start_at(self, lookup: Lookup, output: Tensor) -> Tensor:
        draw = Tensor.normal_ if self.noise == "normal" else lambda z, **how: z.uniform_(-1, 1, **how)
        return self.epsilon * self.draw(lookup, output, draw)
