"""What differs between versions gives the same everywhere, whichever way this version takes."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastnlp_adv import versions
from fastnlp_adv.versions import compile_nothing_in, element_size, is_compiled, refuse_compiled, zip_equal

# The way of Python 3.10 and later, where it is taken, and that of earlier ones, which runs on all of them.
each_zip = pytest.mark.parametrize("zip_equal", [zip_equal, versions._zip_equal], ids=["here", "before 3.10"])


@each_zip
@given(st.lists(st.tuples(st.integers(), st.none(), st.text())))
def test_equal_lengths_are_gone_through_together(zip_equal, rows):
    columns = [[row[i] for row in rows] for i in range(3)]
    assert list(zip_equal(*columns)) == rows
    assert list(zip_equal(*map(iter, columns))) == rows


@each_zip
@pytest.mark.parametrize("lengths", [(2, 3), (3, 2), (0, 1), (3, 3, 2), (2, 3, 3)], ids=str)
def test_unequal_lengths_are_an_error_when_one_ends(zip_equal, lengths):
    found = zip_equal(*(range(length) for length in lengths))
    for i in range(min(lengths)):
        assert next(found) == (i,) * len(lengths)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        next(found)


@each_zip
def test_nothing_to_go_through(zip_equal):
    assert list(zip_equal()) == []


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_element_size(dtype):
    assert element_size(dtype) * 7 == len(torch.zeros(7, dtype=dtype).view(torch.uint8))


def compiling(x):
    return x + float(torch._dynamo.is_compiling())


def test_the_compiler_is_kept_out():
    import torch._dynamo

    assert torch.compile(compiling, backend="eager")(torch.zeros(1)) == 1
    kept_out = compile_nothing_in(compiling)
    assert torch.compile(lambda x: kept_out(x * 2), backend="eager")(torch.zeros(1)) == 0


def test_a_function_is_itself_before_anything_is_compiled(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert compile_nothing_in(compiling) is compiling


def test_is_compiled():
    plain = nn.Linear(2, 2)
    assert not is_compiled(plain)
    assert is_compiled(torch.compile(plain, backend="eager"))
    assert not is_compiled(plain)
    if hasattr(plain, "compile"):
        plain.compile(backend="eager")
        assert is_compiled(plain)


def test_compiled_models_are_refused_before_torch_2_1(monkeypatch):
    plain, compiled = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    if hasattr(torch, "compiler"):
        refuse_compiled(compiled)
        monkeypatch.delattr(torch, "compiler")
    refuse_compiled(plain)
    with pytest.raises(
        ValueError, match=r"`model` not to be compiled on torch before 2\.1, but got a compiled one on \d"
    ):
        refuse_compiled(compiled)
