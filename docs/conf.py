"""The documentation site: ``make docs``. Every page is plain Markdown, to be read on GitHub as well.

What only the site can show stands in the pages as comments, which are filled in when it is built::

    <!-- toctree: Title ... -->       the pages below this one
    <!-- code: ../examples/x.py -->   the text of a program
    <!-- listing: ../examples/x.py -->   the same, folded: a program that several pages share
    <!-- program: ../README.md -->    the first program of a page
    <!-- page: ../CHANGELOG.md -->    another file as part of this page
    <!-- api: fastnlp_adv.FGM -->     a class or function with its docstring
    <!-- methods: attack callback --> the callbacks, or ``method`` for the classes, of all attacks or regularizers
"""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from bilingual_search import BilingualSearch  # noqa: E402

import fastnlp_adv  # noqa: E402
from fastnlp_adv.callbacks import METHODS  # noqa: E402

project, author, copyright = "fastnlp_adv", "the authors of fastnlp_adv", "the authors of fastnlp_adv"
release = version = fastnlp_adv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
suppress_warnings = [
    "myst.header",  # a page that is put into another begins with a second-level heading
    "toc.not_included",  # tables that a page links to
]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "fastnlp_adv"
html_search_language = BilingualSearch.lang
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def _toctree(text: str) -> str:
    title, *pages = text.strip().splitlines()
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])


def _api(text: str) -> str:
    name, *members = text.split()
    directive = "autoclass" if inspect.isclass(pydoc.locate(name)) else "autofunction"
    options = [f"   :members: {', '.join(members)}"] if members else []
    return "\n".join(["```{eval-rst}", f".. {directive}:: {name}", *options, "```"])


def _methods(text: str) -> str:
    kind, which = text.split()
    parts = []
    for entry in METHODS.values():
        if entry.kind == kind:
            cls = getattr(entry, which)
            own = [name for name in ("step", "attack", "memory") if name in vars(cls)]
            parts.append(f"### {entry.title}\n\n" + _api(" ".join([f"fastnlp_adv.{cls.__name__}", *own])))
    return "\n\n".join(parts)


def _code(path: str, *options: str) -> str:
    return "\n".join([f"```{{literalinclude}} {path}", ":language: python", *options, "```"])


_FILLED = {
    "toctree": _toctree,
    "code": lambda path: _code(path, f":caption: {Path(path).name}"),
    "listing": lambda path: f"<details><summary>{Path(path).name}</summary>\n\n{_code(path)}\n\n</details>",
    "program": lambda path: _code(path, ":start-after: ```python", ":end-before: ```"),
    # without its title: the page has its own
    "page": lambda path: f"```{{include}} {path}\n:relative-docs: docs/\n:start-line: 1\n```",
    "api": _api,
    "methods": _methods,
}


def fill_in(app: Any, docname: str, source: list[str]) -> None:
    """
    Put what the comments stand for in their place, and in that of the links that stand for it on GitHub.

    :param app: Sphinx.
    :param docname: the page.
    :param source: its text, in a list of one.
    """
    kinds = "|".join(_FILLED)
    source[0] = re.sub(
        rf"(?:^\[[^]]*\]\([^)]*\)\n\n)?<!-- ({kinds}): (.*?) *-->",
        lambda found: _FILLED[found[1]](found[2].strip()),
        source[0],
        flags=re.S | re.M,
    )


def setup(app: Any) -> None:
    """
    Register :func:`fill_in` and the search.

    :param app: Sphinx.
    """
    app.connect("source-read", fill_in)
    app.add_search_language(BilingualSearch)
