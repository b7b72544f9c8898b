"""NEFTune: noise on the lookups of the one pass that trains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Optional

from torch import Tensor

from ..arguments import Arguments, Cost, argument, arguments, shared
from ..taps import Lookup
from .base import Pass
from .embedding import EmbeddingAttack
from .freelb import noise_on_tokens

__all__ = ["NEFTune", "NEFTuneArguments"]


@arguments
class NEFTuneArguments(Arguments):
    alpha: float = argument(
        5.0,
        "the size of the noise, in the units of the embedding: an example's noise has a norm of about ``0.58 * alpha``",
    )
    emb_name: Optional[str] = shared.emb_name(". Embeddings only")
    relative: bool = shared.relative("``alpha``")

    cost = Cost(1, 1, 0)


@arguments
class NEFTune(NEFTuneArguments, EmbeddingAttack):
    r"""
    Noisy embedding fine-tuning (Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning",
    https://arxiv.org/abs/2310.05914).

    The model trains on :math:`L(e + z)` alone, where :math:`e` are the outputs of the embedding lookups and :math:`z`
    is uniform in :math:`(-1, 1)` times ``alpha`` :math:`/ \sqrt{LH}` on an example's :math:`L` real tokens of :math:`H`
    features. One forward and one backward pass, as in plain training: no gradient is looked at. A token is real unless
    its id is the embedding's ``padding_idx``; without one, all are.

    :param model: the model; its weights are never written.
    :arguments:
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

    paper = "https://arxiv.org/abs/2310.05914"

    def describe(self) -> str:
        return f"{super(EmbeddingAttack, self).describe()}: {self.in_both_units('alpha', self.alpha)}, per example"

    def passes(self) -> Iterator[Pass]:
        for tap in self.embedding_taps:
            tap.start = partial(self._start, tap.unit * self.strength)
        yield Pass(adversarial=True, last=True)
        self.record_start()

    def _start(self, size: float, lookup: Lookup, output: Tensor) -> Tensor:
        return noise_on_tokens(self.stream, self.alpha * size, output, lookup.real())
