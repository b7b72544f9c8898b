"""What differs between versions gives the same everywhere, whichever way this version takes."""

from __future__ import annotations

import sys

import torch
from torch import nn

from fastnlp_adv.versions import compile_nothing_in, has_compiled_parts


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


def test_has_compiled_parts():
    plain = nn.Linear(2, 2)
    assert not has_compiled_parts(plain)
    assert has_compiled_parts(torch.compile(plain, backend="eager"))
    assert not has_compiled_parts(plain)
    plain.compile(backend="eager")
    assert has_compiled_parts(plain)
