"""Attacked texts as a page to read: what was changed, and what the model made of it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .attacked import Attacked, robust_accuracy
from .report_style import STYLE

__all__ = ["write_report"]

#: what became of a text, and how the page calls that
OUTCOMES = {
    "fooled": "fooled",
    "robust": "still right",
    "wrong": "wrong before",
    "untried": "not attacked",
}
# what a page cannot hold or nobody would see: controls, and what stands for half a character
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def write_report(
    attacked: Sequence[Attacked],
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    title: str = "Attacked texts",
) -> Path:
    """
    Write attacked texts as a page for the browser: each with the changes marked, and the prediction before and after.
    They can be filtered by outcome. The page is one file, in any language, and loads and runs nothing: texts are shown
    as they are, whatever stands in them.

    :param attacked: what an attack returned.
    :param path: the file to write; one that is there is replaced.
    :param names: the names of the labels 0, 1, ...; the numbers if ``None``.
    :param title: the title of the page.
    :return: the path.
    :raises ValueError: if there is nothing to write, a label has no name, or the changes do not fit the texts.

    Example::

        >>> import tempfile
        >>> found = [Attacked("物流很快", "物溜很快", 1, 0, True, (("流", "溜"),), 9, starts=(1,), tried=7)]
        >>> page = write_report(found, tempfile.mkdtemp() + "/report.html", names=["negative", "positive"])
        >>> "物<del>流</del>很快" in page.read_text(encoding="utf-8")
        True
    """
    accuracy = robust_accuracy(attacked)
    outcomes = [outcome(each) for each in attacked]
    tabs = [("all", "all", len(attacked)), *((key, name, outcomes.count(key)) for key, name in OUTCOMES.items())]
    over = f"{accuracy:.1%} of {accuracy.attacked} texts" if accuracy.attacked else "no text to count"
    left_out = f", {accuracy.not_attacked} not attacked and left out" if accuracy.not_attacked else ""
    labels = [f'<label for="{key}">{name} <b>{count}</b></label>' for key, name, count in tabs]
    head = escape(_visible(title))
    parts = [
        '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{head}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f'<header><h1 dir="auto">{head}</h1>\n<p>Accuracy under attack: <strong>{over}</strong>{left_out}</p></header>',
        *(f'<input type="radio" name="outcome" id="{key}"{" checked" * (key == "all")}>' for key, *_ in tabs),
        f'<nav aria-label="Filter by outcome">{"".join(labels)}</nav>\n<main>',
        *(
            _card(number, each, key, names)
            for number, (each, key) in enumerate(zip(attacked, outcomes, strict=True), start=1)
        ),
        "</main>\n</body>\n</html>\n",
    ]
    file = Path(path)
    file.write_text("\n".join(parts), encoding="utf-8")
    return file


def outcome(attacked: Attacked) -> str:
    """Say what became of a text, by a key of :data:`OUTCOMES`."""
    if not attacked.was_right:
        return "wrong"
    if attacked.not_attacked:
        return "untried"
    return "fooled" if attacked.fooled else "robust"


def _card(number: int, attacked: Attacked, key: str, names: Sequence[str] | None) -> str:
    label, after = (_name(each, names) for each in (attacked.label, attacked.prediction))
    before = label if attacked.was_right else after
    tried = "" if attacked.tried is None else f", {attacked.tried} tried"
    edits = f"{len(attacked.changes)} edit{'' if len(attacked.changes) == 1 else 's'}{tried}"
    original, changed = _marked(attacked)
    lines = [
        f'<article class="{key}"><p class="about"><span class="number">{number}</span> '
        f'<span class="outcome">{OUTCOMES[key]}</span> <span>label <b><bdi>{label}</bdi></b></span> '
        f"<span>predicted <b><bdi>{before}</bdi></b> → "
        f'<b class="after"><bdi>{after}</bdi></b></span> '
        f'<span class="edits">{edits}</span></p>',
        f'<p class="text" dir="auto">{original}</p>',
    ]
    if attacked.changes:
        lines.append(f'<p class="text" dir="auto">{changed}</p>')
    return "\n".join([*lines, "</article>"])


def _marked(attacked: Attacked) -> tuple[str, str]:
    """The original with what was changed marked, and the attacked text with what stands there now."""
    text, at = attacked.original, 0
    old: list[str] = []
    new: list[str] = []
    fits = len(attacked.starts) == len(attacked.changes)
    made = []
    for start, (before, after) in zip(attacked.starts, attacked.changes, strict=False):
        fits = fits and at <= start and text.startswith(before, start)
        same = text[at:start]
        made += [same, after]
        old.append(_escaped(same) + f"<del>{_escaped(before)}</del>")
        new.append(_escaped(same) + f"<ins>{_escaped(after)}</ins>")
        at = start + len(before)
    if not fits or "".join([*made, text[at:]]) != attacked.text:
        raise ValueError(
            f"Expected `changes` and `starts` to make the attacked text of the original, but got {attacked!r:.200}. "
            "Give what an attack returned."
        )
    return "".join([*old, _escaped(text[at:])]), "".join([*new, _escaped(text[at:])])


def _name(label: int, names: Sequence[str] | None) -> str:
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise ValueError(f"Expected `names` to hold a name for each label, but got {len(names)} for label {label}.")
    return _escaped(str(names[label]))


def _escaped(text: str) -> str:
    return escape(_visible(text))


def _visible(text: str) -> str:
    return _UNSEEN.sub(lambda unseen: f"\\x{ord(unseen[0]):02x}" if ord(unseen[0]) < 256 else "\ufffd", text)
