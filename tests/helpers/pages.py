"""Reading README and pages: blocks of code, structure, links."""

from __future__ import annotations

import re
from pathlib import Path

from fastnlp_adv.callbacks import METHODS

ROOT = Path(__file__).parents[2]


def read(name):
    """Return the text of a file, whose path is relative to the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name):
    """Return the Python programs of a page, whose path is relative to the root."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)


def without_comments(block):
    return re.sub(r" *#.*", "", block)


def structure(name):
    """Return the headings of a page by their levels, its pictures, and its blocks with their languages and lengths."""
    parts, fence = [], None
    for line in read(name).splitlines():
        if "```" in line[:6]:
            if fence is not None:
                parts.append(fence)
            fence = [line.strip("` "), 0] if fence is None else None
        elif fence is not None:
            fence[1] += 1  # a diagram or a log has as many lines in both
        elif found := re.match(r"#+ |!\[", line):
            parts.append(found[0])
    return parts


def anchors(path):
    """Return what the headings of a page can be linked by."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w-]", "", title.strip().lower().replace(" ", "-")) for title in titles}


def broken_links(name):
    """Return the links of a page to files of the repository, and to headings in them, that lead nowhere."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


def reference():
    """Return the full names of the classes and functions that the API reference shows."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/api").glob("*.md")))
    shown = re.findall(r"<!-- api: (\S+)", text)
    for kind, which in re.findall(r"<!-- methods: (\w+) (\w+) -->", text):
        shown += [f"fastnlp_adv.{getattr(each, which).__name__}" for each in METHODS.values() if each.kind == kind]
    return shown


def pages_of_methods():
    """Return the name of each method's page, without its folder, by the name of the method's class."""
    found = {}
    for path in sorted((ROOT / "docs/methods").glob("*.md")):
        program = blocks(str(path.relative_to(ROOT)))[0]
        found[re.search(r"^callback = (\w+)Callback\(", program, flags=re.M)[1]] = path.name
    return found


def linked_methods(name):
    """Return the rows of a page's table of methods: the file of each method's page, and the row."""
    rows = re.finditer(r"^\| \[[^]]+\]\((?:\S*/)?methods/(\w+\.md)\) .*$", read(name), flags=re.M)
    return [(row[1], row[0]) for row in rows]


def papers(line):
    """Return the papers that a line links to."""
    return re.findall(r"\((https://arxiv\.org/abs/[^)]+)\)", line)
