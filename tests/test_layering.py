"""The layers: the torch core knows nothing of fastNLP, public names exist, and every one of them is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pytest
from pages import reference

import fastnlp_adv

ROOT = Path(fastnlp_adv.__file__).parent
FASTNLP = ("callbacks", "compat")  # the only parts that know it
CORE = [
    p
    for p in sorted(ROOT.rglob("*.py"))
    if p != ROOT / "__init__.py" and p.relative_to(ROOT).with_suffix("").parts[0] not in FASTNLP
]
MODULES = ["fastnlp_adv", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "fastnlp_adv."))]


def imports(path):
    """The absolute names of all modules that a file imports, at the top or inside a function."""
    package = [path.parent.name] if path.parent != ROOT else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["fastnlp_adv", *package][: len(package) + 2 - node.level] if node.level else []
            modules = [node.module] if node.module else [alias.name for alias in node.names]  # `from . import name`
            yield from (".".join([*above, module]) for module in modules)


@pytest.mark.parametrize("path", CORE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_neither_fastnlp_nor_the_layers_above(path):
    for name in imports(path):
        top = name.split(".")[0]
        known = {"torch", "numpy", "typing_extensions", "fastnlp_adv", *sys.stdlib_module_names}
        assert top in known or path == ROOT / f"trainers/{top}.py", name
        if top == "fastnlp_adv":
            layer = name.split(".")[1]
            assert layer not in FASTNLP, name


#: the layers, each of which may import from those before it
LAYERS = [
    {"versions", "functional", "forwards", "random_state", "options", "batch"},
    {"divergences", "taps", "schedule"},
    {"learning", "model_method"},
    {"method"},
    {"attacks", "regularizers"},
    {"robustness"},
    {"callbacks", "trainers", "compat"},
]
LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    for name in imports(path):
        if name.startswith("fastnlp_adv."):
            other = name.split(".")[1]
            assert other == own or LAYER[other] < LAYER[own], f"{own} imports {other}"


def test_the_table_of_the_files_is_in_the_order_of_the_layers():
    rows = re.findall(
        r"^\| (`\w+[./].*?) \| ", (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M
    )
    names = [re.sub(r"\.py$|/$", "", each) for row in rows for each in re.findall(r"`(.*?)`", row)]
    assert {*names} == {*LAYER}
    assert [LAYER[each] for each in names] == sorted(LAYER[each] for each in names)


def test_no_two_files_import_each_other():
    """Not by way of others either."""
    edges = {}
    for path in FILES:
        name = ".".join(["fastnlp_adv", *path.relative_to(ROOT).with_suffix("").parts])
        edges[name] = {i for i in imports(path) if i.startswith("fastnlp_adv") and i != name}
    done = set()

    def follow(name, way):
        assert name not in way, f"a circle: {' -> '.join([*way, name])}"
        if name not in done:
            for other in edges.get(name, ()):
                follow(other, [*way, name])
        done.add(name)

    for name in edges:
        follow(name, [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_hides_inside_a_function(path):
    """Except for optional dependencies."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                assert module == "pypinyin", f"{function.name} imports {module}"


def test_the_root_holds_few_modules():
    assert len([p for p in ROOT.iterdir() if p.suffix == ".py"]) <= 12


@pytest.mark.parametrize("module", MODULES)
def test_packages_list_the_names_that_they_export_once(module):
    module = importlib.import_module(module)
    assert module.__doc__
    is_package = hasattr(module, "__path__")
    names = getattr(module, "__all__", None if is_package else [])
    assert len({*names}) == len(names)
    for name in names:
        assert hasattr(module, name), name


def public():
    """Functions and classes that the API reference shows, by name, but not the parts that methods are built from."""
    inside = tuple(f"fastnlp_adv.{name}." for name in ("attacks", "options", "regularizers", "schedule"))
    return {name: pkgutil.resolve_name(name) for name in reference() if not name.startswith(inside)}


def parameters(thing):
    """The names of the parameters of a function, or of a class's constructor."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in signature.parameters.items() if p.kind not in variadic and name != "self"]


def methods(cls):
    """Public methods that the class defines itself."""
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, function


@pytest.mark.parametrize("name", public())
def test_public_classes_and_functions_document_their_parameters(name):
    thing = public()[name]
    doc = inspect.getdoc(thing)
    assert doc and not doc.startswith(f"{thing.__name__}("), "no docstring"  # a dataclass makes one of its signature
    missing = [p for p in parameters(thing) if f":param {p}:" not in doc]
    assert not missing, f"{name} does not document {missing}"
    for named in (line.split(":")[1].split()[-1] for line in doc.splitlines() if line.strip().startswith(":param ")):
        assert inspect.isclass(thing) or named in inspect.signature(thing).parameters, f"{name} documents {named}"


@pytest.mark.parametrize("name", [n for n in fastnlp_adv.__all__ if inspect.isclass(getattr(fastnlp_adv, n))])
def test_public_methods_are_documented(name):
    cls = getattr(fastnlp_adv, name)
    for method, _ in methods(cls):
        doc = inspect.getdoc(getattr(cls, method))
        hook = method.startswith("on_")  # fastNLP's, documented there
        assert doc or hook or method in ("passes", "check"), f"{name}.{method}"
