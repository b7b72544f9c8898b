"""The layers: the torch core knows nothing of fastNLP, public names exist, and every one of them is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from pages import reference

import fastnlp_adv

ROOT = Path(fastnlp_adv.__file__).parent
FASTNLP = ("callbacks", "compat")  # the only parts that know it
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


OUTSIDE = {"torch", "numpy", "typing_extensions", *sys.stdlib_module_names}


def test_imports_go_one_way():
    """And the torch core imports neither fastNLP nor anything else that may be missing."""
    wrong = []
    for path in FILES:
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports(path):
            top, *rest = name.split(".")
            if top != "fastnlp_adv":
                allowed = own in FASTNLP or top in OUTSIDE or path == ROOT / f"trainers/{top}.py"
            else:
                allowed = not rest or rest[0] == own or LAYER[rest[0]] < LAYER[own]
            wrong += [] if allowed else [f"{path.relative_to(ROOT)} imports {name}"]
    assert wrong == []


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


def test_no_import_hides_inside_a_function():
    """Except for optional dependencies."""
    hidden = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in FILES
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "pypinyin" not in ast.unparse(node)
    ]
    assert hidden == []


def test_the_root_holds_few_modules():
    assert len([p for p in ROOT.iterdir() if p.suffix == ".py"]) <= 12


def test_modules_export_names_that_exist_once():
    wrong = []
    for name in MODULES:
        with suppress(ImportError) if name.startswith("fastnlp_adv.trainers.") else nullcontext():  # a library too old
            module = importlib.import_module(name)
            names = getattr(module, "__all__", None if hasattr(module, "__path__") else [])
            if not module.__doc__ or names is None or len({*names}) < len(names):
                wrong.append(name)
            wrong += [f"{name}.{each}" for each in names or () if not hasattr(module, each)]
    assert wrong == []


def documented_wrongly(thing):
    """The gaps in the docstring of a function or class: itself, parameters it leaves out, and names that are none."""
    doc = inspect.getdoc(thing)
    if not doc or doc.startswith(f"{thing.__name__}("):  # a dataclass makes one of its signature
        return ["a docstring"]
    parameters = inspect.signature(thing).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = [name for name, p in parameters.items() if p.kind not in variadic and name != "self"]
    named = [each.split()[-1] for each in re.findall(r"^ *:param ([^:]+):", doc, flags=re.M)]
    return [*{*taken} - {*named}, *(() if inspect.isclass(thing) else {*named} - {*parameters})]


def test_public_classes_and_functions_document_their_parameters():
    """The arguments of methods and schedules are declared with their description, which `options` checks."""
    inside = tuple(f"fastnlp_adv.{name}." for name in ("attacks", "options", "regularizers", "schedule"))
    shown = {}
    for name in reference():
        with suppress(ImportError, AttributeError) if ".trainers." in name else nullcontext():  # a library too old
            shown |= {} if name.startswith(inside) else {name: pkgutil.resolve_name(name)}
    wrong = {name: documented_wrongly(thing) for name, thing in shown.items()}
    assert {name: each for name, each in wrong.items() if each} == {}


def test_public_methods_are_documented():
    """But for the hooks of fastNLP, which are documented there."""
    classes = [thing for thing in (getattr(fastnlp_adv, n) for n in fastnlp_adv.__all__) if inspect.isclass(thing)]
    assert [
        f"{cls.__name__}.{name}"
        for cls in classes
        for name, member in vars(cls).items()
        if inspect.isfunction(getattr(member, "__func__", member))
        if not name.startswith(("_", "on_")) and name not in ("passes", "check")
        if not inspect.getdoc(getattr(cls, name))
    ] == []
