"""Accuracy under attack: what counts, what does not, and how it is shown."""

from __future__ import annotations

import csv
import io
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
    assert found == 1 / 3 and isinstance(found, float)
    assert (found.not_attacked, found.attacked) == (2, 3)
    assert repr(found) == f"RobustAccuracy({1 / 3!r}, not_attacked=2, attacked=3)"
    assert repr(robust_accuracy([ROBUST])) == "RobustAccuracy(1.0, attacked=1)"


def test_nothing_attacked_is_no_number():
    found = robust_accuracy([UNTOUCHED, UNTOUCHED])
    assert math.isnan(found) and found.not_attacked == 2


def test_it_is_a_number_wherever_numbers_go():
    found = robust_accuracy([FOOLED, ROBUST, UNTOUCHED])
    file = io.StringIO()
    csv.writer(file).writerow([found])
    assert (f"{found:.1%}", str(found), json.dumps(found), file.getvalue()) == ("50.0%", "0.5", "0.5", "0.5\r\n")
    copy = pickle.loads(pickle.dumps(found))
    assert isinstance(copy, RobustAccuracy) and (copy, copy.not_attacked, copy.attacked) == (0.5, 1, 2)
