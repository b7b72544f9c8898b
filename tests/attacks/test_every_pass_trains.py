"""What FreeLB and TA-VAT have in common: all passes of a step train, with equal weights."""

from __future__ import annotations

import pytest
from references import assert_same, batch, classifier, gradients, loss_on
from support import Classifier, distance, train
from torch.nn.functional import cross_entropy

from fastnlp_adv import TAVAT, FreeLB, FreeLBCallback, TAVATCallback

IDS, LABELS = batch(4, 7)
LOSS = loss_on(IDS, LABELS)
both = pytest.mark.parametrize(("method", "callback"), [(FreeLB, FreeLBCallback), (TAVAT, TAVATCallback)])


@both
@pytest.mark.parametrize("steps", [1, 3])
def test_without_noise_and_climbs_it_is_plain_training(method, callback, steps):
    model = classifier()
    LOSS(model).backward()
    plain = gradients(model)
    model.zero_grad()
    with method(model, alpha=0.0, init=0.0, steps=steps) as attack:
        attack.step(lambda: LOSS(model))
    assert_same(gradients(model), plain, rtol=1e-12)
    ours, theirs = Classifier(dropout=0.0), Classifier(dropout=0.0)
    train(ours, [callback(alpha=0.0, init=0.0, steps=steps)])
    train(theirs)
    assert distance(ours, theirs) < 1e-6


@both
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_cost_and_weights_of_the_passes(method, callback, steps):
    model = classifier()
    counts = {"forward": 0, "input": 0, "full": 0}

    def count(name):
        counts[name] += 1

    model.head.weight.register_hook(lambda grad: count("full"))

    def closure():
        count("forward")
        logits = model(IDS)
        logits.register_hook(lambda grad: count("input"))
        return cross_entropy(logits, LABELS)

    attack = method(model, steps=steps)
    attack.step(closure)
    assert counts == {"forward": steps, "input": steps, "full": steps}
    with attack.running() as passes:
        seen = []
        for each in passes:
            seen.append(each)
            LOSS(model).backward()
    assert [each.last for each in seen] == [False] * (steps - 1) + [True]
    assert all(each.trains and each.adversarial and each.weight == 1 / steps for each in seen)
