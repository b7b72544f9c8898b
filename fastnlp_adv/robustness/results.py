"""The results of attacks on text: the outcome of each text, the accuracy that is left, and a page to read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

#: the outcomes of an attack on a text, and their names on the page
OUTCOMES = {"fooled": "fooled", "robust": "still right", "wrong": "wrong before", "untried": "not attacked"}
# controls and halves of characters, which a page cannot hold or does not show
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Attacked:
    """
    The result of an attack on a text.

    :param original: the text.
    :param text: the attacked text; the original where the attack found nothing or was not needed.
    :param label: the label.
    :param prediction: the model's prediction for ``text``.
    :param was_right: whether the prediction for the original was right.
    :param changes: the edits, in the order of the text: the old stretch and the new one.
    :param queries: how many times the model was run on a text of this search, gradient passes included.
    :param starts: where each change begins in the original.
    :param tried: how many edits were tried on the model; ``None`` if that is not known.
    :param other: the other text of a pair, which stays; ``None`` for a single text.
    """

    original: str
    text: str
    label: int
    prediction: int
    was_right: bool
    changes: tuple[tuple[str, str], ...]
    queries: int
    starts: tuple[int, ...] = ()
    tried: int | None = None
    other: str | None = None

    @property
    def fooled(self) -> bool:
        """Whether a right prediction was turned into a wrong one."""
        return self.was_right and self.prediction != self.label

    @property
    def not_attacked(self) -> bool:
        """Whether the prediction was right and the attack found nothing to try, so the model was not tested."""
        return self.was_right and self.tried == 0

    @property
    def robust(self) -> bool:
        """Whether the prediction was right and still is, after edits were tried."""
        return self.was_right and self.prediction == self.label and not self.not_attacked


@dataclass(frozen=True)
class RobustAccuracy:
    """
    An accuracy under attack. It is formatted as its number: ``f"{found:.1%}"``.

    :param accuracy: the share of texts that are still predicted right; not a number if none was attacked.
    :param not_attacked: how many texts the attack could try nothing on; they are left out.
    :param attacked: how many texts the accuracy is taken over.
    """

    accuracy: float
    not_attacked: int
    attacked: int

    def __format__(self, spec: str) -> str:
        return format(self.accuracy, spec)


def robust_accuracy(results: Sequence[Attacked]) -> RobustAccuracy:
    """
    Compute the accuracy under attack: of the texts that were wrong before or that edits were tried on, the share that
    is still predicted right.

    A text on which the attack could try nothing, such as one without a word that it may edit, is *not attacked*. The
    model was not tested on it, so it counts neither as right nor as wrong. If ``not_attacked`` is large, the accuracy
    covers only a part of your texts, and another attack suits them better.

    :param results: the results of an attack.
    :return: the share, with the numbers of texts that were left out and counted.
    :raises ValueError: if there are no results.

    Example::

        >>> fooled = Attacked("good", "goood", 1, 0, True, (("good", "goood"),), 12, tried=10)
        >>> robust = Attacked("bad", "bad", 0, 0, True, (), 12, tried=10)
        >>> untouched = Attacked("...", "...", 0, 0, True, (), 2, tried=0)
        >>> robust_accuracy([fooled, robust, untouched])
        RobustAccuracy(accuracy=0.5, not_attacked=1, attacked=2)
        >>> f"{robust_accuracy([fooled, robust, untouched]):.1%}"
        '50.0%'
    """
    if not results:
        raise ValueError("Expected `results` to hold the results of an attack, but got none.")
    counted = [each for each in results if not each.not_attacked]
    share = sum(each.robust for each in counted) / len(counted) if counted else math.nan
    return RobustAccuracy(share, len(results) - len(counted), len(counted))


def write_report(
    attacked: Sequence[Attacked],
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    title: str = "Attacked texts",
) -> Path:
    """
    Write attacked texts as a page for the browser: each with the changes marked, and the prediction before and after.
    They can be filtered by outcome. The page is one file, in any language, and loads and runs nothing: markup in texts
    is shown as text.

    :param attacked: the results of an attack.
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
    outcomes = [_outcome(each) for each in attacked]
    tabs = [("all", "all", len(attacked)), *((key, name, outcomes.count(key)) for key, name in OUTCOMES.items())]
    over = f"{accuracy:.1%} of {accuracy.attacked} texts" if accuracy.attacked else "no text to count"
    left_out = f", {accuracy.not_attacked} not attacked and left out" if accuracy.not_attacked else ""
    labels = "".join(f'<label for="{key}">{name} <b>{count}</b></label>' for key, name, count in tabs)
    style = _STYLE + "".join((_TAB if key == "all" else _TAB + _FILTER).replace("TAB", key) for key, *_ in tabs)
    head = _escaped(title)
    parts = [
        '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{head}</title>\n<style>{style}</style>\n</head>\n<body>",
        f'<header><h1 dir="auto">{head}</h1>\n<p>Accuracy under attack: <strong>{over}</strong>{left_out}</p></header>',
        *(f'<input type="radio" name="outcome" id="{key}"{" checked" * (key == "all")}>' for key, *_ in tabs),
        f'<nav aria-label="Filter by outcome">{labels}</nav>\n<main>',
        *(_card(number, each, names) for number, each in enumerate(attacked, start=1)),
        "</main>\n</body>\n</html>\n",
    ]
    file = Path(path)
    file.write_text("\n".join(parts), encoding="utf-8")
    return file


def _outcome(attacked: Attacked) -> str:
    if not attacked.was_right:
        return "wrong"
    if attacked.not_attacked:
        return "untried"
    return "fooled" if attacked.fooled else "robust"


def _card(number: int, attacked: Attacked, names: Sequence[str] | None) -> str:
    key = _outcome(attacked)
    label, after = (_name(each, names) for each in (attacked.label, attacked.prediction))
    before = label if attacked.was_right else after
    tried = "" if attacked.tried is None else f", {attacked.tried} tried"
    edits = f"{len(attacked.changes)} edit{'' if len(attacked.changes) == 1 else 's'}{tried}"
    texts = list(_marked(attacked)[: 2 if attacked.changes else 1])
    if attacked.other is not None:
        texts.insert(0, _escaped(attacked.other))
    lines = [
        f'<article class="{key}"><p class="about"><span>{number}</span> <b class="outcome">{OUTCOMES[key]}</b> '
        f"<span>label <b><bdi>{label}</bdi></b></span> <span>predicted <b><bdi>{before}</bdi></b> → "
        f'<b class="after"><bdi>{after}</bdi></b></span> <span class="edits">{edits}</span></p>',
        *(f'<p class="text" dir="auto">{text}</p>' for text in texts),
        "</article>",
    ]
    return "\n".join(lines)


def _marked(attacked: Attacked) -> tuple[str, str]:
    """The original with the old stretches marked, and the attacked text with the new ones."""
    text, at = attacked.original, 0
    old, new, made = "", "", ""
    fits = len(attacked.starts) == len(attacked.changes)
    for start, (before, after) in zip(attacked.starts, attacked.changes, strict=False):
        fits = fits and at <= start and text.startswith(before, start)
        same, at = text[at:start], start + len(before)
        made += same + after
        old += f"{_escaped(same)}<del>{_escaped(before)}</del>"
        new += f"{_escaped(same)}<ins>{_escaped(after)}</ins>"
    if not fits or made + text[at:] != attacked.text:
        raise ValueError(
            f"Expected `changes` and `starts` to make the attacked text of the original, but got {attacked!r:.200}. "
            "Give the results of an attack."
        )
    return old + _escaped(text[at:]), new + _escaped(text[at:])


def _name(label: int, names: Sequence[str] | None) -> str:
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise ValueError(f"Expected `names` to hold a name for each label, but got {len(names)} for label {label}.")
    return _escaped(str(names[label]))


def _escaped(text: str) -> str:
    shown = _UNSEEN.sub(lambda unseen: f"\\x{ord(unseen[0]):02x}" if ord(unseen[0]) < 256 else "\ufffd", text)
    return escape(shown)


# radio buttons filter the page, so it needs no script; system colors and transparent ones fit light and dark pages
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem;
  font: 1rem/1.6 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1, b, .text { overflow-wrap: anywhere; }
input[name=outcome] { position: absolute; opacity: 0; }
nav { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: .4rem; padding: .5rem 0; background: Canvas; }
nav label { padding: .15rem .7rem; border: 1px solid GrayText; border-radius: 2rem; cursor: pointer; }
article { margin: .75rem 0; padding: .6rem .9rem; border: 1px solid GrayText; border-radius: .5rem; }
.about { display: flex; flex-wrap: wrap; gap: 0 .5rem; margin: 0 0 .4rem; font-size: .9rem; }
.edits { margin-inline-start: auto; }
.fooled .outcome, .fooled .after, .robust .outcome { border-radius: .2rem; padding: 0 .2em; }
.text { margin: 0; white-space: pre-wrap; }
.text + .text { margin-top: .3rem; padding-top: .3rem; border-top: 1px dashed GrayText; }
del, .fooled .outcome, .fooled .after { background: #f003; }
ins, .robust .outcome { background: #0a03; }
ins { text-decoration: none; font-weight: 600; }
ins:empty::before { content: "∅"; font-weight: 400; }
@media print { nav { display: none; } article { break-inside: avoid; } }
"""
_TAB = """
#TAB:checked ~ nav [for=TAB] { background: Highlight; color: HighlightText; }
#TAB:focus-visible ~ nav [for=TAB] { outline: 2px solid; outline-offset: 2px; }
"""
_FILTER = "#TAB:checked ~ main article:not(.TAB) { display: none; }"
