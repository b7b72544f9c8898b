"""What fastNLP itself would take is small and written by hand; it trains the weights that this package trains."""

import pytest
import torch
from support import Bert, Classifier, distance, train
from torch import nn

import fastnlp_adv
from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback
from tests.upstream import patched


def assert_same_weights(theirs, ours, **kwargs):
    """Train a model and callbacks of each side from one seed."""
    (model, callbacks), (expected, package_callbacks) = theirs, ours
    before = type(expected)()
    train(model, callbacks, n_batches=-1, n_epochs=2, **kwargs)
    train(expected, package_callbacks, n_batches=-1, n_epochs=2, **kwargs)
    assert distance(model, expected) < 1e-6
    assert distance(model, before) > 1e-3


@pytest.mark.parametrize("model_class, accumulation_steps", [(Classifier, 1), (Classifier, 2), (Bert, 1)])
@pytest.mark.parametrize(
    "theirs, ours",
    [
        (lambda: [patched.TorchFGMCallback()], lambda: [FGMCallback()]),
        (lambda: [patched.TorchFGMCallback(0.3)], lambda: [FGMCallback(0.3)]),
        (lambda: [patched.TorchPGDCallback()], lambda: [PGDCallback(alpha=0.5, steps=3)]),
        (lambda: [patched.TorchPGDCallback(0.5, 0.4, 4)], lambda: [PGDCallback(0.5, alpha=0.4, steps=4)]),
        (lambda: [patched.TorchRDropCallback(0.7)], lambda: [RDropCallback(0.7, mode="concat")]),
        (lambda: [patched.TorchRDropCallback(0.7, "two_pass")], lambda: [RDropCallback(0.7, mode="two_pass")]),
        (
            lambda: [patched.TorchRDropCallback(), patched.TorchPGDCallback()],
            lambda: [RDropCallback(), PGDCallback(alpha=0.5)],
        ),
    ],
    ids=["fgm", "fgm small", "pgd", "pgd small", "rdrop concat", "rdrop two_pass", "rdrop and pgd"],
)
def test_callbacks(model_class, accumulation_steps, theirs, ours):
    sides = (model_class(), theirs()), (model_class(), ours())
    assert_same_weights(*sides, accumulation_steps=accumulation_steps)


@pytest.mark.parametrize("model_class", [Classifier, Bert])
def test_mixin(model_class):
    class Theirs(patched.RDropMixin, model_class):
        rdrop_kl_weight = 0.5

    class Ours(fastnlp_adv.RDropMixin, model_class):
        rdrop_kl_weight = 0.5

    assert_same_weights((Theirs(), None), (Ours(), None))


@pytest.mark.parametrize("embedding", [{"padding_idx": None}, {"padding_idx": 3}])
def test_rows_that_are_padding(embedding):
    theirs = (Classifier(**embedding), [patched.TorchPGDCallback()])
    assert_same_weights(theirs, (Classifier(**embedding), [PGDCallback(alpha=0.5)]))


class Two(Classifier):
    """Looks up two embeddings, one of them twice."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.position_embeddings = nn.Embedding(16, 8)

    def forward(self, input_ids):
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        words = self.word_embeddings(input_ids) + self.word_embeddings(input_ids.flip(1)).cumsum(1)
        hidden, _ = self.rnn(self.dropout(words + self.position_embeddings(places)))
        return self.head(hidden.mean(1))


@pytest.mark.parametrize("name", ["word_embeddings", "embeddings"])
def test_several_lookups_and_several_embeddings(name):
    theirs = (Two(), [patched.TorchPGDCallback(emb_name=name)])
    assert_same_weights(theirs, (Two(), [PGDCallback(alpha=0.5, emb_name=name)]))
