"""How sure a difference between two methods is."""

import math

import numpy as np
import pytest
from study.outcomes import difference, save_outcomes
from study.runs import Runs, interval


def test_intervals_are_over_seeds_and_texts(tmp_path):
    """With texts all alike the interval is that over seeds; with seeds all alike it is that over texts."""
    rows = {}
    for method, shares in {"plain": (0.2, 0.4, 0.6), "FGM": (0.5, 0.9, 0.7)}.items():
        for seed, share in enumerate(shares):
            rows[method, seed] = {"method": method, "seed": seed, "accuracy": share}
            rows[method, seed].update(save_outcomes(tmp_path, method, seed, {"swap_1": [[share, 1.0]] * 50}))
    table = Runs(tmp_path, {}, rows)
    mean, low, high = difference(table, "plain", "FGM", "swap_1")
    expected = interval([30.0, 50.0, 10.0])
    assert mean == pytest.approx(30) and (low, high) == pytest.approx(expected, abs=1.5)
    assert difference(table, "FGM", "plain", "swap_1") == pytest.approx((-mean, -high, -low))
    assert difference(table, "plain", "FGM", "accuracy")[1:] == pytest.approx(expected)  # not known for each text
    right = np.arange(50) < 20
    for seed in range(3):
        for method, hits in (("plain", 0 * right), ("FGM", right)):
            outcomes = {"swap_1": [[float(hit), 1.0] for hit in hits]}
            rows[method, seed].update(save_outcomes(tmp_path, method, seed, outcomes))
    mean, low, high = difference(table, "plain", "FGM", "swap_1")
    half = 1.96 * 100 * math.sqrt(0.4 * 0.6 / 50)
    assert mean == pytest.approx(40) and (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_texts_that_nothing_was_tried_on_do_not_count(tmp_path):
    rows = {}
    for method, counts in {"plain": [[0.0, 1.0], [1.0, 1.0], None], "FGM": [[1.0, 1.0], [1.0, 1.0], None]}.items():
        for seed in range(2):
            rows[method, seed] = {"seed": seed, **save_outcomes(tmp_path, method, seed, {"swap_1": counts * 20})}
    assert rows["plain", 0]["swap_1"] == 0.5
    mean, low, high = difference(Runs(tmp_path, {}, rows), "plain", "FGM", "swap_1")
    assert mean == 50 and 0 < low < 50 < high < 100
