"""The page that shows all records: targets, then a table and a figure for each sweep."""

from __future__ import annotations

from pathlib import Path

from benchmarks import figures
from benchmarks.record import Record
from benchmarks.tables import of_targets, table
from benchmarks.targets import targets
from benchmarks.words import INTRODUCTION, NOTE, NOTE_ON, PEAK, SETTINGS


def write(records: dict[str, Record], folder: Path) -> None:
    """The page and its figures."""
    drawn = {name: figures.draw(found, folder) for name, found in records.items()}
    (folder / "README.md").write_text(_page(records, drawn), encoding="utf-8")


def _page(records: dict[str, Record], drawn: dict[str, Path | None]) -> str:
    sections = [INTRODUCTION, _machines(records)]
    kept = of_targets(targets(records))
    if kept.rows:
        sections.append(f"## {kept.title}\n\n{kept.markdown()}\n")
    sections += [_section(found, drawn[name]) for name, found in records.items()]
    return "\n".join(sections)


def _section(found: Record, figure: Path | None) -> str:
    shown = table(found)
    parts = [f"## {shown.title}"]
    if shown.detail:
        parts.append(f"{shown.detail}.")
    parts.append(shown.markdown())
    if figure:
        parts.append(f"![{shown.title}]({figure.name})")
    parts.append(_note(found))
    if len(found["points"]) > 1 and found["kind"] == "time":
        parts.append(_settings(found))
    parts.append(f"*{found['date']}, `{found['command']}`.*")
    return "\n\n".join(parts) + "\n"


def _note(found: Record) -> str:
    """What is to be known about a sweep, filled with the settings of its first point."""
    point = found["points"][0]
    setting = point["setting"]
    peak = PEAK["cpu" if setting["device"] == "cpu" else "gpu"]
    note = NOTE[found["name"]].format(**setting, s="s" * (setting["layers"] > 1), peak=peak)
    return note + "".join(NOTE_ON.get(row["variant"], "") for row in point["rows"])


def _settings(found: Record) -> str:
    """What all points have in common."""
    settings = [point["setting"] for point in found["points"]]
    names = {key: name for key, name in SETTINGS.items() if len({each[key] for each in settings}) == 1}
    same = [f"{name} {settings[0][key]:,}" for key, name in names.items()]
    return f"The same throughout: {', '.join(same)}."


def _machines(records: dict[str, Record]) -> str:
    """The machines and the versions, each once."""
    lines = []
    for found in records.values():
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        lines.append(f"Measured on {found['machine']}; {versions}.\n")
    return "\n".join(dict.fromkeys(lines))
