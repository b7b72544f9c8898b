"""FreeLB: every ascent of the perturbation is also a pass that trains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..method import Cost, SharesDropout
from ..options import check_count, check_flag, check_fraction, check_number, option, options
from ..random_state import Noise
from ..taps import EmbeddingTap, Lookup
from .base import Pass
from .embedding import EmbeddingAttack
from .passes import check_masks_fit


@options
class FreeLB(SharesDropout, EmbeddingAttack):
    r"""
    Free large-batch adversarial training (Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language
    Understanding", https://arxiv.org/abs/1909.11764).

    The perturbation starts at noise and takes ``steps - 1`` ascent steps; the model trains on the mean loss along its
    path,

    .. math:: \frac{1}{K}\sum_{t=0}^{K-1} L(e + d_t), \qquad
        d_{t+1} = \Pi_\epsilon\bigl(d_t + \alpha\, g_t / \lVert g_t \rVert_2\bigr), \quad g_t = \nabla_e L(e + d_t),

    where :math:`e` are the outputs of the embedding lookups, one perturbation per position, with norms over each
    example. :math:`d_0` is uniform in :math:`(-1, 1)` on the real tokens, times ``init`` :math:`/ \sqrt{nH}` for an
    example of :math:`n` real tokens and :math:`H` features, so its norm is about ``0.58 * init``. An example whose
    gradient is zero, infinite or NaN does not move. ``mask`` selects the real tokens. A step costs as much as
    ``steps`` plain ones.

    The definition has no clean pass. With ``clean`` the model trains on :math:`L(e) + \frac{1}{K}\sum_t L(e + d_t)`, at
    one pass more: the weights of :class:`~fastnlp_adv.FGM`, 1 for the clean loss and 1 for the adversarial ones. With a
    ``fraction`` f as well, the clean pass is on the whole batch and the others are on the attacked rows: 1 + f K plain
    steps.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> freelb = FreeLB(model, epsilon=0.2, steps=3)
        >>> loss = freelb.step(lambda: nn.functional.cross_entropy(model(ids), labels))   # then optimizer.step()
        >>> 0 < freelb.perturbation_norm.item() < 0.201
        True
        >>> freelb.close()
    """

    epsilon: float = option(
        default=0.0,
        check=check_number,
        doc="the radius of the ball around the clean input, in the units of the embedding; 0 for no projection. It "
        "bounds the ascent steps, not the noise",
        kw_only=False,
    )
    alpha: float = option(default=0.1, check=check_number, doc="the length of an ascent step, in the same units")
    steps: int = option(default=3, check=check_count, doc="the number :math:`K` of passes")
    init: float = option(default=0.05, check=check_number, doc="the size of the noise, in the same units")
    clean: bool = option(
        default=False,
        check=check_flag,
        doc="train on the clean loss as well, in a pass before the others; it is added to their mean",
    )
    fraction: float = option(
        default=1.0,
        check=check_fraction,
        doc="the fraction of a batch's examples to attack, drawn at random in each step, at least one; below 1 it "
        "needs ``clean``, the pass on the whole batch",
    )

    paper = "https://arxiv.org/abs/1909.11764"

    def validate(self) -> None:
        super().validate()
        if self.fraction < 1 and not self.clean:
            raise ValueError(
                f"Expected `clean` to be True with a `fraction` below 1, but got {self.clean}: nothing would train on "
                "the examples that are not attacked. Use `clean=True`, or `fraction=1`."
            )
        check_masks_fit(self.fraction, self.dropout_mask)

    @property
    def has_two_losses(self) -> bool:  # type: ignore[override]
        return self.clean

    @property
    def cost(self) -> Cost:
        return Cost(self.steps + self.clean, self.steps + self.clean, 0)

    def passes(self) -> Iterator[Pass]:
        if self.clean:
            yield Pass()
        for tap in self.embedding_taps:
            tap.start = partial(self._start, tap)
        for left in reversed(range(self.steps)):
            yield Pass(weight=1 / self.steps, adversarial=True, last=left == 0, part=True)
            if left:
                self._move()
        if self.steps == 1 and not self.clean:
            self.record_start()

    def _start(self, tap: EmbeddingTap, lookup: Lookup, output: Tensor) -> Tensor:
        return noise_on_tokens(self.stream, self.init * (tap.unit * self.strength), output, lookup.real())

    def _move(self) -> None:
        self.ascend(self.alpha, radius=self.epsilon or None)


def noise_on_tokens(noise: Noise, init: Tensor | float, output: Tensor, real: Tensor) -> Tensor:
    r"""Draw noise uniform in :math:`(-1, 1)` times ``init`` :math:`/ \sqrt{nH}` on an example's :math:`n` tokens."""
    x = noise.like(output).uniform_(-1, 1, generator=noise.on(output.device))
    size = real.sum(dim=tuple(range(1, real.dim())), keepdim=True).clamp(min=1) * output.shape[-1]
    return torch.where(real, x * (init / size.to(x.dtype).sqrt()), 0)
