"""PGD in plain loops gives the gradients of the textbook: ascend on a copy of the weights, project, train, restore."""

from __future__ import annotations

import pytest
import torch
from references import (
    IDS,
    LABELS,
    LOSS,
    additions,
    assert_same,
    classifier,
    classifier_from,
    each_granularity,
    same_noise,
    shrink,
    step,
    textbook,
)

from fastnlp_adv import PGD

NORM = pytest.mark.parametrize("norm", ["l2", "linf"])


def reference(model, granularity, **arguments):
    return textbook(model, granularity, LOSS, IDS, classifier_from(LABELS), **arguments)


@NORM
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("epsilon", [0.5, 2.0])  # reach the surface, stay inside
@each_granularity
def test_a_step_is_that_of_the_textbook(granularity, epsilon, steps, norm):
    model = classifier()
    found = step(PGD(model, epsilon, alpha=0.3, steps=steps, norm=norm, granularity=granularity), model, LOSS)
    assert_same(found, reference(model, granularity, steps=[0.3] * steps, radius=epsilon, norm=norm))


@NORM
@pytest.mark.parametrize("replace", [False, True])
@each_granularity
def test_a_random_start(granularity, norm, replace):
    """Read off the lookups of the first inner pass; the reference ascends from it."""
    model = classifier()
    arguments = {"norm": norm, "replace": replace}
    pgd = PGD(model, 0.5, alpha=0.3, steps=2, random_init=True, granularity=granularity, **arguments)
    starts = []
    for _ in range(2):
        same_noise(pgd)
        with additions(model.word_embeddings, IDS) as seen:
            found = step(pgd, model, LOSS)
        assert seen[-4].eq(0).all()
        starts.append(seen[-3])
    assert torch.equal(*starts)
    start = starts[0]
    assert start[IDS == 0].eq(0).all()
    assert start[IDS != 0].abs().sum(-1).gt(0).all()
    if granularity == "vocab":
        rows = torch.zeros_like(model.word_embeddings.weight)
        rows[IDS] = start
        groups, given = [rows], {"word_embeddings.weight": rows}
    else:
        groups, given = start.flatten(0, 1) if granularity == "token" else start, [start]
        assert len({round(float(group.norm()), 9) for group in groups}) >= len(LABELS)  # each its own length
    for group in groups:
        assert torch.allclose(group, shrink(group, 0.5, norm))
    assert_same(found, reference(model, granularity, steps=[0.3] * 2, radius=0.5, start=given, **arguments))
