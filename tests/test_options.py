"""
One table of all arguments: what each may be and what it may not, for methods, callbacks and the mixin alike.

A new argument with a check of its own needs a row here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from support import Classifier

from fastnlp_adv import RDropMixin, options
from fastnlp_adv.callbacks import METHODS
from fastnlp_adv.robustness import WorstCase

NOTHING = (object(), [], (), {})  # no value of any argument


@dataclass(frozen=True)
class Kind:
    """
    :param expected: how a message says it.
    :param taken: values that are taken, and kept as they were given.
    :param refused: values that are not, besides ``NOTHING``.
    """

    expected: str
    taken: tuple[Any, ...]
    refused: tuple[Any, ...]


def one_of(*choices: str) -> Kind:
    return Kind(f"one of {', '.join(map(repr, choices))}", choices, ("", "nothing", choices[0].upper(), None, 1, True))


def or_else(kind: Kind, *more: Any) -> Kind:
    """The same, but some of what it refuses is taken."""
    left = tuple(value for value in kind.refused if not any(value is each for each in more))
    return Kind(kind.expected, (*kind.taken, *more), left)


WRONG_NUMBERS = (-0.1, -1, math.nan, math.inf, -math.inf, "1", "1.0", None, True)
NUMBER = Kind("a finite, non-negative number", (0, 0.0, 0.5, 3, Fraction(1, 3), np.float32(2)), WRONG_NUMBERS)
POSITIVE = Kind("a positive number", (1e-6, 0.5, 3), (*WRONG_NUMBERS, 0, 0.0))
UP_TO_1 = Kind("a number from 0 to 1", (0, 0.5, 1), (*WRONG_NUMBERS, 1.5))
FRACTION = Kind("a positive number of at most 1", (1, 1.0, 0.25, Fraction(1, 3)), (*WRONG_NUMBERS, 0, 0.0, 1.5))
COUNT = Kind("an integer of at least 1", (1, 2, np.int64(3)), (0, -1, 1.0, 1.5, math.nan, "1", None, True))
COUNT_OR_0 = Kind("an integer of at least 0", (0, 1, 2), (-1, 0.5, 1.0, "1", None, True))
FLAG = Kind("True or False", (True, False, np.True_), (0, 1, "yes", None))
NAME = Kind("a part of a name or None", (None, "word", "*embed*"), ("", 3, True))
HALF = Kind("None or torch.bfloat16", (None, torch.bfloat16), (torch.float16, torch.float32, "bfloat16", True))
MASK = Kind("None, the key of a batch field or a callable", (None, "mask", lambda batch, out: None), (3, torch.ones(2)))
STORED = Kind(
    "one of torch.float16, ",
    (torch.float16, torch.bfloat16, torch.float32, torch.float64),
    ("float16", torch.int8, None),
)
RADII = Kind("a ", ((0.1, 0.2), [0]), (0.1, None, "0.1", (-0.1,), (math.nan,), ("1",)))
PARAMS = Kind("part of a parameter's name or a glob", ("*.weight", "head"), ("", None, 3))

#: by the name of the argument, or by "method.argument" where the method means something else by it
TABLE = {
    "adv_weight": NUMBER,
    "adaptive": FLAG,
    "alpha": NUMBER,
    "PGD.alpha": or_else(NUMBER, None),
    "WorstCase.alpha": or_else(POSITIVE, None),
    "bregman_beta": UP_TO_1,
    "bregman_weight": NUMBER,
    "clean": FLAG,
    "coordinate_bound": or_else(NUMBER, None),
    "divergence": or_else(one_of("categorical", "bernoulli", "mse"), torch.nn.functional.l1_loss),
    "dropout_mask": one_of("new", "same"),
    "emb_name": NAME,
    "epsilon": NUMBER,
    "epsilons": RADII,
    "every": COUNT,
    "fraction": FRACTION,
    "gamma": NUMBER,
    "granularity": one_of("vocab", "sequence", "token"),
    "init": NUMBER,
    "inner_autocast": HALF,
    "kl_weight": NUMBER,
    "mask": MASK,
    "mode": one_of("concat", "two_pass"),
    "R3F.noise": one_of("normal", "uniform"),
    "SMART.noise": POSITIVE,
    "norm": one_of("l2", "linf"),
    "params": PARAMS,
    "random_init": FLAG,
    "reduction": one_of("batchmean", "sum", "mean"),
    "relative": FLAG,
    "replace": FLAG,
    "restarts": COUNT,
    "rho": NUMBER,
    "rounding": one_of("none", "stochastic"),
    "seed": COUNT_OR_0,
    "start": NUMBER,
    "steps": COUNT,
    "storage_dtype": STORED,
    "warmup": Kind("a finite, non-negative number or 'auto'", (*NUMBER.taken, "auto"), WRONG_NUMBERS),
    "weight": NUMBER,
    "xi": POSITIVE,
}
#: the kinds of arguments without a row, by the check that they are declared with
OF_CHECK = {
    options.check_number: NUMBER,
    options.check_positive: POSITIVE,
    options.check_up_to_1: UP_TO_1,
    options.check_fraction: FRACTION,
    options.check_count: COUNT,
    options.check_flag: FLAG,
    options.check_name: NAME,
}
CLASSES = {**{name: (each.callback, each.method) for name, each in METHODS.items()}, "WorstCase": (WorstCase,)}
PAIRS = [(method, name) for method, classes in CLASSES.items() for name in classes[-1].names()]


def row(method, name):
    """The key of the row that an argument has, or would have."""
    special = f"{method}.{name}"
    return special if special in TABLE else name


def kind_of(method, name):
    """The kind of an argument: its row, or else that of its check."""
    (field,) = [each for each in dataclasses.fields(CLASSES[method][-1]) if each.name == name]
    return TABLE.get(row(method, name)) or OF_CHECK[field.metadata["check"]]


def once():
    """One method of each argument, and one more wherever the argument is declared with another check."""
    found = {}
    for method, name in PAIRS:
        found.setdefault((row(method, name), CLASSES[method][-1]._checks[name]), (method, name))
    return found.values()


each_argument = pytest.mark.parametrize(("method", "name"), once(), ids=map(".".join, once()))


def makers(method, name):
    """What takes this argument of this method: its callback, and the class for plain loops."""
    cls, *_ = CLASSES[method]
    inner = {"replace": True} if name == "inner_autocast" and "replace" in cls.names() else {}
    for cls in CLASSES[method]:
        if name in cls.names():
            yield cls, inner


def refused(name, kind):
    return pytest.raises(ValueError, match=f"Expected `{name}` to be {re.escape(kind.expected)}.*but got ")


def test_every_row_has_an_argument():
    assert TABLE.keys() <= {row(*pair) for pair in PAIRS}


@each_argument
def test_the_choices_of_the_type_are_those_of_the_table(method, name):
    hint = get_type_hints(CLASSES[method][-1])[name]
    literals = [each for each in (hint, *get_args(hint)) if get_origin(each) is Literal]
    choices = {choice for literal in literals for choice in get_args(literal)}
    taken = kind_of(method, name).taken
    assert choices == {value for value in taken if isinstance(value, str)} or not literals
    assert (type(None) in get_args(hint)) == (None in taken)


@each_argument
def test_allowed_values_are_kept_as_given(method, name):
    for make, more in makers(method, name):
        late = make(**more)
        for value in kind_of(method, name).taken:
            assert getattr(make(**more, **{name: value}), name) is value
            setattr(late, name, value)
            assert getattr(late, name) is value


@each_argument
def test_other_values_are_refused_by_name_and_change_nothing(method, name):
    kind = kind_of(method, name)
    for make, more in makers(method, name):
        late = make(**more)
        before = late.values()
        for value in (*NOTHING, *kind.refused):
            with refused(name, kind):
                make(**more, **{name: value})
            with refused(name, kind):
                setattr(late, name, value)
            assert all(late.values()[each] is kept for each, kept in before.items())


@pytest.mark.parametrize("name", ["kl_weight", "reduction", "divergence", "mode", "mask"])
def test_settings_of_the_mixin_are_those_of_rdrop(name):
    """Refused with the class where they are written there, and else by the first step."""

    class Model(RDropMixin, Classifier):
        pass

    kind, model = TABLE[row("RDrop", name)], Model()
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.tensor([0, 1])}
    for value in kind.taken:
        type("Model", (RDropMixin, Classifier), {f"rdrop_{name}": staticmethod(value) if callable(value) else value})
    for value in (*NOTHING, *kind.refused):
        with refused(name, kind):
            type("Model", (RDropMixin, Classifier), {f"rdrop_{name}": value})
        setattr(model, f"rdrop_{name}", value)
        with refused(name, kind):
            model.train_step(**batch)
