"""The page that shows all records: targets, then a table and a figure for each sweep."""

from __future__ import annotations

from pathlib import Path

from benchmarks import figures
from benchmarks.record import Record
from benchmarks.tables import of_targets, table
from benchmarks.targets import targets

INTRODUCTION = """\
# What it costs

Made by `python -m benchmarks` from the JSON files beside it; do not edit. `python -m benchmarks --render` makes page
and figures again without measuring.

All variants of a setting take their steps in turn, on the same model and batch, in fastNLP's Trainer. A time is given
as its ratio to the plain step of the same round: the median, in brackets the quartiles. **Plain steps** are the unit:
forward and backward pass, the optimizer's step (SGD) and the clearing of gradients.

The **limit** is the least that a step can cost by its passes: a forward pass counts 1/3, a full backward pass 2/3, a
backward pass that ends at the embeddings 1/3. Forward and backward passes alone are counted, so what is done once a
step (the optimizer, the clearing of gradients) can bring a measured ratio below its limit.

The **textbook** loops are written from the definitions: they clone the embedding matrix, write the perturbation into
it and put the clone back, PGD clones and restores all gradients as well, and R-Drop runs two separate forward passes.
"""


def write(records: dict[str, Record], folder: Path) -> Path:
    """The page and its figures."""
    sections = [INTRODUCTION, _machines(records)]
    kept = targets(records)
    if kept:
        sections.append(f"## Targets\n\n{of_targets(kept).markdown()}\n")
    sections += [_section(found, figures.draw(found, folder)) for found in records.values()]
    path = folder / "README.md"
    path.write_text("\n".join(sections))
    return path


def _section(found: Record, figure: Path | None) -> str:
    shown = table(found)
    parts = [f"## {found['title']}"]
    if shown.detail:
        parts.append(f"{shown.detail[0].upper()}{shown.detail[1:]}.")
    parts.append(shown.markdown())
    if figure:
        parts.append(f"![{found['title']}]({figure.name})")
    if found["note"]:
        parts.append(found["note"])
    if len(found["points"]) > 1 and found["kind"] == "time":
        parts.append(_settings(found))
    parts.append(f"*{found['date']}, `{found['command']}`.*")
    return "\n\n".join(parts) + "\n"


def _settings(found: Record) -> str:
    """What all points have in common."""
    settings = [point["setting"] for point in found["points"]]
    names = {"batch": "batch", "length": "length", "vocab": "vocabulary", "hidden": "hidden size", "layers": "layers"}
    same = [f"{text} {settings[0][key]:,}" for key, text in names.items() if len({s[key] for s in settings}) == 1]
    return f"The same throughout: {', '.join(same)}."


def _machines(records: dict[str, Record]) -> str:
    """The machines and the versions, each once."""
    lines = []
    for found in records.values():
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        lines.append(f"Measured on {found['machine']}; {versions}.\n")
    return "\n".join(dict.fromkeys(lines))
