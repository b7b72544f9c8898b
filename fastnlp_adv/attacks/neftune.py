"""NEFTune: noise on the lookups of the one pass that trains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from ..method import Cost
from ..options import check_number, option, options
from ..taps import EmbeddingTap, Lookup
from ..taps.find import scales
from .base import Pass
from .embedding import EmbeddingAttack
from .freelb import noise_on_tokens


@options
class NEFTune(EmbeddingAttack):
    r"""
    Noisy embedding fine-tuning (Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning",
    https://arxiv.org/abs/2310.05914).

    The model trains on :math:`L(e + z)`, where :math:`e` are the outputs of the embedding lookups and :math:`z` is
    uniform in :math:`(-1, 1)` times ``alpha`` :math:`/ \sqrt{LH}` on an example's :math:`L` real tokens of :math:`H`
    features (see ``mask``). One forward and one backward pass, as in plain training; no gradient is used. Embeddings
    that scale their rows (Gemma, BART) do not scale the noise, as in transformers; with ``relative`` it is in rows, and
    scaled with them.

    :param model: the model, or ``None`` to :meth:`attach` it later; its weights are never written.
    :options:
    :raises ValueError: if an argument is out of range, or nothing matches ``emb_name``.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([0])
        >>> neftune = NEFTune(model, alpha=5.0)
        >>> loss = neftune.step(lambda: nn.functional.cross_entropy(model(ids), labels))
        >>> bool(neftune.perturbation_norm < 5.0)
        True
        >>> neftune.close()
    """

    alpha: float = option(
        default=5.0,
        check=check_number,
        doc="the size of the noise, in the units of the lookups' outputs: an example's noise has a norm of about "
        "``0.58 * alpha``",
        kw_only=False,
    )

    paper = "https://arxiv.org/abs/2310.05914"
    needs_only_outputs = True

    @property
    def cost(self) -> Cost:
        return Cost(1, 1, 0)

    def describe(self) -> str:
        if not self.taps:
            return f"NEFTune: alpha {self.alpha:g}{' rows' * self.relative}, unattached"
        scaled = not self.relative and any(scales(m) for tap in self.embedding_taps for m in tap.embedding.modules)
        size = f"alpha {self.alpha:g} after scaling" if scaled else self.in_both_units("alpha", self.alpha)
        return f"{super(EmbeddingAttack, self).describe()}: {size}, per example"

    def passes(self) -> Iterator[Pass]:
        for tap in self.embedding_taps:
            tap.of_rows = self.relative
            tap.start = partial(self._start, tap)
        yield Pass(adversarial=True, last=True)
        self.record_start()

    def _start(self, tap: EmbeddingTap, lookup: Lookup, output: Tensor) -> Tensor:
        return noise_on_tokens(self.stream, self.alpha * (tap.unit * self.strength), output, lookup.real())
