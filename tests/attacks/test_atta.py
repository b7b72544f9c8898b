"""ATTA against its definition: one perturbation per example in a dictionary, added to embedded inputs in loops."""

from __future__ import annotations

import copy

import pytest
import torch
from fastNLP import TorchDataLoader
from references import (
    Siamese,
    assert_same,
    batch,
    bert,
    classifier,
    classifier_from,
    differ,
    direction,
    gradients,
    loss_on,
    shrink,
    words,
)
from support import Classifier, build, collate, distance, loader, samples, train, weights
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from fastnlp_adv.attacks.atta import ATTA
from fastnlp_adv.callbacks.atta import ATTACallback, _length

EPSILON, ALPHA = 0.3, 0.2
G = torch.Generator().manual_seed(3)
SENTENCES = [torch.randint(1, 50, (int(n),), generator=G) for n in (3, 7, 5, 6, 2, 4)]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
#: the batches of three epochs: the indices of their examples, the length that they are padded to, and on which side
BATCHES = [([0, 1, 2], 7, "right"), ([3, 4, 5], 6, "right"), ([5, 0, 3], 9, "left"), ([2, 4, 1], 8, "right")]
BATCHES += [([1, 3, 4], 7, "left"), ([0, 2, 5], 5, "right"), ([4, 1, 0], 10, "right")]


def padded(indices, length, side):
    rows = []
    for i in indices:
        zeros = torch.zeros(length - len(SENTENCES[i]), dtype=torch.long)
        rows.append(torch.cat([SENTENCES[i], zeros] if side == "right" else [zeros, SENTENCES[i]]))
    return torch.stack(rows), LABELS[indices]


def classifier_loss(model, ids, labels, embedded=None):
    embedded = model.word_embeddings(ids) if embedded is None else embedded
    return classifier_from(labels)(model, embedded)


def bert_loss(model, ids, labels, embedded=None):
    inputs = {"input_ids": ids} if embedded is None else {"inputs_embeds": embedded}
    return model(**inputs, attention_mask=(ids != 0).long(), labels=labels).loss


MODELS = {"classifier": (classifier, classifier_loss), "bert": (bert, bert_loss)}
each_model = pytest.mark.parametrize(("make", "loss_of"), MODELS.values(), ids=MODELS)


class Definition:
    """Perturbations in a dictionary, a vector per token, and a step in loops over examples."""

    def __init__(self, dtype):
        self.kept, self.dtype = {}, dtype

    def placed(self, ids, indices, width):
        d = torch.zeros(*ids.shape, width, dtype=torch.float64)
        for b, i in enumerate(indices):
            d[b, ids[b] != 0] = self.kept.get(i, torch.zeros(1, width)).double()
        return d.requires_grad_()

    def move(self, ids, indices, d, grad):
        for b, i in enumerate(indices):
            real = ids[b] != 0
            self.kept[i] = shrink(d[b, real] + ALPHA * direction(grad[b, real], "l2"), EPSILON, "l2").to(self.dtype)

    def loss(self, model, loss_of, ids, labels, indices):
        """The loss at the perturbed input; its backward pass moves the perturbations."""
        embedded = words(model)(ids)
        d = self.placed(ids, indices, embedded.shape[-1])
        d.register_hook(lambda grad: self.move(ids, indices, d.detach(), grad))
        return loss_of(model, ids, labels, embedded + d)


@each_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_gradients_and_perturbations_are_those_of_the_definition(make, loss_of, dtype):
    model, definition = make(), Definition(dtype)
    other = copy.deepcopy(model)
    atta = ATTA(model, EPSILON, alpha=ALPHA, storage_dtype=dtype)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    for number, (indices, length, side) in enumerate(BATCHES):
        ids, labels = padded(indices, length, side)
        loss = atta.step(lambda: loss_of(model, ids, labels), indices)  # noqa: B023
        expected = definition.loss(other, loss_of, ids, labels, indices)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
        assert_same(gradients(model), gradients(other))
        if number >= 2:
            plain = copy.deepcopy(model)
            plain.zero_grad()
            loss_of(plain, ids, labels).backward()
            assert differ(gradients(model), gradients(plain)) > 1e-4
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(model, other) < 1e-12
    for (_, lookup, example), row in atta.perturbations.items():
        assert lookup == 0
        torch.testing.assert_close(row, definition.kept[example])  # nothing is kept of the padding
        assert row.double().norm() <= EPSILON * 1.01


def test_first_epoch_is_plain_to_the_bit():
    """Also with workers, which are ahead of the batch that is trained."""
    ours, plain = Classifier(), Classifier()
    workers = {"num_workers": 2, "prefetch_factor": 2}
    data = TorchDataLoader(samples(), batch_size=4, shuffle=True, collate_fn=collate, **workers)
    train(ours, [ATTACallback()], train_dataloader=data, n_epochs=1, n_batches=-1)
    train(plain, train_dataloader=loader(shuffle=True), n_epochs=1, n_batches=-1)
    assert torch.equal(weights(ours), weights(plain))


def test_every_lookup_has_its_own_perturbation():
    model, definitions = Siamese(padding_idx=0), [Definition(torch.float64), Definition(torch.float64)]
    other = copy.deepcopy(model)
    lefts, _ = batch(8, 5)
    rights, _ = batch(8, 4, seed=1)
    atta = ATTA(model, EPSILON, alpha=ALPHA, storage_dtype=torch.float64)
    for indices in ([4, 0, 7], [7, 4, 1]):
        sides = [lefts[indices], rights[indices]]
        model.zero_grad()
        other.zero_grad()
        atta.step(lambda: model(*sides), indices)  # noqa: B023
        d = [definition.placed(ids, indices, 6) for definition, ids in zip(definitions, sides, strict=True)]
        other.at(*sides)(d).backward()
        for definition, ids, v in zip(definitions, sides, d, strict=True):
            definition.move(ids, indices, v.detach(), v.grad)
        assert_same(gradients(model), gradients(other))
    assert len(atta.perturbations) == 8  # four examples, two lookups


def test_steps_without_their_own_indices_are_refused():
    model = classifier()
    ids, labels = padded([0, 1, 2], 7, "right")
    atta = ATTA(model)
    loss = loss_on(ids, labels)
    atta.step(lambda: loss(model), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="indices"):
        atta.step(lambda: loss(model))  # those of the last step are used up
    for indices in ([0], [0, 1], [0, 1, 2, 3], []):
        with pytest.raises(RuntimeError, match=rf"got {len(indices)} indices and ids of shape \(3, 7\)"):
            atta.step(lambda: loss(model), indices)
    with pytest.raises(TypeError):
        atta.step(lambda: loss(model), ["a", "b", "c"])
    assert {example for _, _, example in atta.perturbations} == {0, 1, 2}


def test_a_dataloader_without_indices_is_refused_when_the_trainer_is_built():
    plain = DataLoader(samples(), batch_size=4, collate_fn=collate)
    with pytest.raises(ValueError, match=r"got DataLoader, which does not.*TorchDataLoader.*compat.repair"):
        build(Classifier(), [ATTACallback()], train_dataloader=plain)


def test_the_memory_is_said_once_and_is_an_upper_bound(said):
    kept = []

    class Watch(ATTACallback):
        def on_train_batch_end(self, trainer):
            super().on_train_batch_end(trainer)
            rows = self.method.perturbations.values()
            kept.append((sum(row.nbytes for row in rows), self.method.memory(24, 7)))

    train(Classifier(), [Watch()], train_dataloader=loader(shuffle=True), n_batches=12)
    (line,) = [each.getMessage() for each in said.records if "ATTA keeps" in each.getMessage()]
    assert "estimate" in line
    assert "24 examples of 7 tokens" in line
    assert f"{24 * 7 * 8 * 2 / 2**20:.4g} MiB" in line
    assert 0 < kept[0][0] < kept[5][0] <= kept[5][1] == 24 * 7 * 8 * 2
    assert kept[5][0] == kept[-1][0]  # all examples are there after the first epoch


def test_a_dataloader_that_gives_no_indices_after_all_is_refused(monkeypatch):
    monkeypatch.setattr(TorchDataLoader, "get_batch_indices", lambda self: None)
    with pytest.raises(ValueError, match="TorchDataLoader, which does not"):
        build(Classifier(), [ATTACallback()]).run()


def test_the_estimate_sees_through_a_batch_encoding():
    assert _length(BatchEncoding(collate(samples(3))), 3) == 7
