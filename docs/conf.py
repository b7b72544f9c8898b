"""The documentation sites: ``make docs``. Every page is plain Markdown, to be read on GitHub as well.

The tag ``chinese`` builds the pages of ``docs/zh-CN``, otherwise the others are built. What only the site can show
stands in the pages as comments, which are filled in when it is built::

    <!-- toctree: Title ... -->            the pages below this one
    <!-- code: ../examples/x.py -->        the text of a program
    <!-- listing: ../examples/x.py -->     the same, folded: a program that several pages share
    <!-- program: ../README.md -->         the first program of a page
    <!-- accuracies: ../README.md -->      a figure of the results that this program prints
    <!-- page: ../CHANGELOG.md -->         another file as part of this page
    <!-- api: fastnlp_adv.FGM -->          a class or function with its docstring
    <!-- methods: attack callback -->      the callbacks, or ``method`` for the classes, of all attacks or regularizers
"""

from __future__ import annotations

import inspect
import posixpath
import pydoc
import re
import sys
from pathlib import Path
from typing import Any

import merm
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

from chinese_search import ChineseSearch  # noqa: E402

import fastnlp_adv  # noqa: E402
from fastnlp_adv.callbacks import METHODS  # noqa: E402

project, author, copyright = "fastnlp_adv", "the authors of fastnlp_adv", "the authors of fastnlp_adv"
release = version = fastnlp_adv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
CHINESE = tags.has("chinese")  # noqa: F821, which Sphinx defines
language = "zh_CN" if CHINESE else "en"
exclude_patterns = [] if CHINESE else ["_build", "zh-CN"]
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
html_theme_options = {"top_of_page_buttons": []}
html_title = "fastnlp_adv"
html_search_language = ChineseSearch.lang if CHINESE else "en"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
templates_path = ["_templates"]
html_show_sphinx = html_show_copyright = html_copy_source = html_use_index = False


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


def _accuracies(path: str) -> str:
    """Draw the accuracies that a page's first program prints, as bars."""
    lines = re.findall(r"^(\w+)( +epsilon .*%)$", (ROOT / Path(path).name).read_text(encoding="utf-8"), flags=re.M)
    found = {name: re.findall(r"epsilon ([\d.]+): +([\d.]+)%", line) for name, line in lines}
    bars, y = [], 0
    for i, (epsilon, _) in enumerate(next(iter(found.values()))):
        bars.append(f'<text x="0" y="{y + 27}">ε = {epsilon}</text>')
        for name, values in found.items():
            share = float(values[i][1])
            bars.append(f'<rect class="{name}" x="60" y="{y}" width="{2 * share}" height="18" rx="2"/>')
            bars.append(f'<text x="{66 + 2 * share}" y="{y + 14}">{name} {share:g} %</text>')
            y += 22
        y += 12
    return f'<figure><svg class="bars" viewBox="0 0 350 {y - 16}">{"".join(bars)}</svg></figure>'


_FILLED = {
    "toctree": _toctree,
    "code": lambda path: _code(path, f":caption: {Path(path).name}"),
    "listing": lambda path: f"<details><summary>{Path(path).name}</summary>\n\n{_code(path)}\n\n</details>",
    "accuracies": _accuracies,
    "program": lambda path: _code(path, ":start-after: ```python", ":end-before: ```"),
    # without its title: the page has its own
    "page": lambda path: f"```{{include}} {path}\n:relative-docs: docs/\n:start-line: 1\n```",
    "api": _api,
    "methods": _methods,
}


def fill_in(app: Any, docname: str, source: list[str]) -> None:
    """
    Put what the comments stand for in their place, and in that of the links that stand for it on GitHub.

    The link below the title is left out: every page of the site has a link to the other language.

    :param app: Sphinx.
    :param docname: the page.
    :param source: its text, in a list of one.
    """
    text = re.sub(r"^\[(?:简体中文|中文|English)\]\(\S*\)(?: · )?", "", source[0], count=1, flags=re.M)
    source[0] = re.sub(
        rf"(?:^\[[^]]*\]\([^)]*\)\n\n)?<!-- ({'|'.join(_FILLED)}): (.*?) *-->",
        lambda found: _FILLED[found[1]](found[2].strip()),
        text,
        flags=re.S | re.M,
    )


def link_to_english(app: Any, doctree: Any) -> None:
    """
    Turn links of the Chinese site to pages that exist in English only into links to the English site.

    :param app: Sphinx.
    :param doctree: a page.
    :raises ExtensionError: if there is no such page, or no such heading; the English site is built first.
    """
    folder = posixpath.dirname(app.env.docname)
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node["refdomain"] != "doc" or node["reftarget"] in app.env.found_docs:
            continue
        target = posixpath.relpath(node["reftarget"], app.srcdir)
        page, heading = Path(app.outdir, f"{target}.html"), nodes.make_id(node["reftargetid"] or "")
        if not page.exists() or (heading and f'id="{heading}"' not in page.read_text(encoding="utf-8")):
            raise ExtensionError(f"{app.env.docname}: no {target}, or no heading `{heading}` there")
        uri = posixpath.relpath(f"{target}.html", folder) + (f"#{heading}" if heading else "")
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


#: words of the theme, which has no Chinese
_OF_THE_THEME = {
    "Back to top": "回到顶部",
    "Home": "首页",
    "Next": "下一页",
    "On this page": "本页内容",
    "Previous": "上一页",
}


def add_switch(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """
    Give a page the link to itself in the other language, or to the first page there.

    In the navigation of the Chinese site, also resolve the links to English pages.

    :param app: Sphinx.
    :param pagename: the page.
    :param templatename: its template.
    :param context: the variables of the template.
    :param doctree: its contents.
    """
    there = DOCS if CHINESE else DOCS / "zh-CN"
    page = pagename if pagename == "search" or (there / f"{pagename}.md").exists() else "index"
    folder = posixpath.dirname(pagename)
    uri = posixpath.relpath(f"{'..' if CHINESE else 'zh-CN'}/{page}.html", folder)
    # headerlink: the search leaves it out of its excerpts
    context["switch"] = f'<a class="language headerlink" href="{uri}">{"English" if CHINESE else "简体中文"}</a>'
    if CHINESE:
        tree, english = context.get("furo_navigation_tree", ""), posixpath.relpath("..", folder)
        context["furo_navigation_tree"] = tree.replace("english:/", english)
        gettext = app.builder.templates.environment.globals["gettext"]
        context["gettext"] = lambda text: _OF_THE_THEME.get(text, gettext(text))


def write_math(translator: Any, node: Any) -> None:
    """
    Write a formula as MathML. Parts that are set apart in LaTeX by a space may go on separate lines.

    :param translator: the writer of HTML.
    :param node: the formula.
    """
    block = isinstance(node, nodes.math_block)
    parts = [tex2mathml(part, as_block=block) for part in re.split(r"\\q?quad", node.astext())]
    lines = "".join(f"<span>{part}</span>" for part in parts)
    translator.body.append(f'<div class="math">{lines}</div>' if block else parts[0])
    raise nodes.SkipNode


class Mermaid(SphinxDirective):
    """A Mermaid sequence diagram, drawn when the site is built; on a telephone a list of its arrows."""

    has_content = True

    def run(self) -> list[Any]:
        """
        Draw it.

        :return: the drawing and the list.
        """
        text = "\n".join(self.content)
        names = dict(re.findall(r"participant (\w+) as (.*)", text))
        arrows = re.findall(r"(\w+)-?->>(\w+): (.*)", text)
        steps = "".join(f"<li><b>{names[a]} → {names[b]}</b>: {label}</li>" for a, b, label in arrows)
        drawing = f'<div class="diagram">{merm.render_diagram(text)}<ol>{steps}</ol></div>'
        return [nodes.raw("", drawing, format="html")]


def setup(app: Any) -> None:
    """
    Register the functions above and the search.

    :param app: Sphinx.
    """
    app.connect("source-read", fill_in)
    if CHINESE:
        app.connect("doctree-read", link_to_english)
    app.connect("html-page-context", add_switch, priority=900)  # after the theme's
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.add_directive("mermaid", Mermaid)
    app.add_search_language(ChineseSearch)
