"""Accuracy under attack: what counts, what does not, and how it is shown."""

from __future__ import annotations

import json
import math
import pickle

from fastnlp_adv.robustness import Attacked, RobustAccuracy, robust_accuracy

FOOLED = Attacked("good", "goood", 1, 0, True, (("good", "goood"),), 12, (0,), 10)
ROBUST = Attacked("bad", "bad", 0, 0, True, (), 12, tried=10)
WRONG = Attacked("fine", "fine", 1, 0, False, (), 1, tried=0)
UNTOUCHED = Attacked("……", "……", 1, 1, True, (), 2, tried=0)


def test_each_result_is_exactly_one_of_four():
    for each in (FOOLED, ROBUST, WRONG, UNTOUCHED):
        assert sum([each.fooled, each.robust, not each.was_right, each.not_attacked]) == 1
    assert Attacked("bad", "bad", 0, 0, True, (), 12).robust  # where nobody counted


def test_texts_that_were_not_attacked_count_neither_way():
    found = robust_accuracy([FOOLED, ROBUST, WRONG, UNTOUCHED, UNTOUCHED])
    assert found == RobustAccuracy(accuracy=1 / 3, not_attacked=2, attacked=3)
    none = robust_accuracy([UNTOUCHED, UNTOUCHED])
    assert math.isnan(none.accuracy) and none.not_attacked == 2


def test_it_is_formatted_as_its_number_which_is_a_plain_float():
    found = robust_accuracy([FOOLED, ROBUST, UNTOUCHED])
    assert (f"{found:.1%}", f"{found}") == ("50.0%", "0.5")
    assert type(found.accuracy) is float and json.dumps(found.accuracy) == "0.5"
    assert pickle.loads(pickle.dumps(found)) == found
