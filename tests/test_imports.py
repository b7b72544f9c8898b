"""fastNLP is imported when something that needs it is used."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import fastnlp_adv

ROOT = Path(fastnlp_adv.__file__)
#: what `make smoke` runs in an environment without it
LOOP = Path(__file__).parents[1] / "tools/smoke_loop.py"

WITHOUT = """
import sys
sys.modules["fastNLP"] = None  # as if it were not installed
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)


def test_importing_leaves_fastnlp_alone_and_warns_of_nothing():
    done = run("import sys, fastnlp_adv\nassert 'fastNLP' not in sys.modules\nfrom fastnlp_adv import FGM")
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_methods_work_in_loops_without_fastnlp():
    done = run(WITHOUT + LOOP.read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["FGMCallback", "LogCallback", "compat"])
def test_what_needs_fastnlp_says_how_to_install_it(name):
    done = run(f"{WITHOUT}\nfrom fastnlp_adv import {name}")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: Expected fastNLP to be installed for `fastnlp_adv.{name}`") and "pip" in last


def test_a_name_that_does_not_exist_is_no_import_error():
    assert not hasattr(fastnlp_adv, "FGNCallback") and not hasattr(fastnlp_adv, "callback")


def test_editors_and_type_checkers_see_the_names_that_are_imported_late():
    tree = ast.parse(ROOT.read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body for alias in node.names}
    late = {name for name in fastnlp_adv.__all__ if name.endswith("Callback")} | {"compat"}
    assert seen == late and {*dir(fastnlp_adv)} > late | {*fastnlp_adv.__all__}


def test_a_star_import_has_every_name_and_callbacks_are_pickled_by_name():
    space = {}
    exec("from fastnlp_adv import *", space)
    assert {*fastnlp_adv.__all__} <= {*space}
    callback = pickle.loads(pickle.dumps(fastnlp_adv.FGMCallback(epsilon=0.5)))
    assert type(callback) is fastnlp_adv.FGMCallback and callback.epsilon == 0.5
