"""NEFTune against its definition on embedded inputs."""

from __future__ import annotations

import math

import pytest
import torch
from references import assert_same, batch, classifier, gradients
from torch.nn.functional import cross_entropy

from fastnlp_adv import NEFTune

IDS, LABELS = batch(4, 7)
IDS[0, 3:] = IDS[1, 5:] = 0


@pytest.mark.parametrize("padding_idx", [0, None])
def test_a_step(padding_idx):
    """Noise example by example: its size follows from the number of real tokens."""
    ours, theirs = classifier(padding_idx=padding_idx), classifier(padding_idx=padding_idx)
    neftune = NEFTune(ours, alpha=3.0)
    neftune.stream.generator = torch.Generator().manual_seed(5)
    neftune.step(lambda: cross_entropy(ours(IDS), LABELS))
    embedded = theirs.word_embeddings(IDS)
    noise = torch.empty_like(embedded).uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    for example, ids in enumerate(IDS.tolist()):
        real = [padding_idx is None or i != padding_idx for i in ids]
        scale = 3.0 / math.sqrt(sum(real) * embedded.shape[-1])
        for place, is_real in enumerate(real):
            noise[example, place] *= scale * is_real
    cross_entropy(theirs.head(theirs.rnn(embedded + noise)[0].mean(1)), LABELS).backward()
    assert_same(gradients(ours), gradients(theirs))
    assert neftune.perturbation_norm.item() == pytest.approx(noise.norm().item())
    neftune.close()


def test_without_noise_it_is_plain_training():
    ours, theirs = classifier(), classifier()
    NEFTune(ours, alpha=0.0).step(lambda: cross_entropy(ours(IDS), LABELS))
    cross_entropy(theirs(IDS), LABELS).backward()
    assert_same(gradients(ours), gradients(theirs))
