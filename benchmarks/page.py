"""The page that shows all records, in English and Chinese: targets, then a table and a figure for each sweep."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import figures
from benchmarks.record import Record
from benchmarks.tables import of_targets, table
from benchmarks.targets import targets
from benchmarks.words import CHINESE, ENGLISH, Words


def write(records: dict[str, Record], folder: Path) -> None:
    """The page in both languages, and its figures."""
    drawn = {name: figures.draw(found, folder) for name, found in records.items()}
    for words in (ENGLISH, CHINESE):
        (folder / words["file"]).write_text(_page(records, drawn, words), encoding="utf-8")


def _page(records: dict[str, Record], drawn: dict[str, Path | None], words: Words) -> str:
    sections = [words["introduction"], _machines(records, words)]
    kept = of_targets(targets(records, words), words)
    if kept.rows:
        sections.append(f"## {kept.title}\n\n{kept.markdown()}\n")
    sections += [_section(found, drawn[name], words) for name, found in records.items()]
    return "\n".join(sections)


def _section(found: Record, figure: Path | None, words: Words) -> str:
    shown = table(found, words)
    parts = [f"## {shown.title}"]
    if shown.detail:
        parts.append(words["sentence"].format(shown.detail))
    parts.append(shown.markdown())
    if figure:
        parts.append(f"![{shown.title}]({figure.name})")
    parts.append(_note(found, words))
    if len(found["points"]) > 1 and found["kind"] == "time":
        parts.append(_settings(found, words))
    parts.append(words["made"].format(**found))
    return "\n\n".join(parts) + "\n"


def _note(found: Record, words: Words) -> str:
    """What is to be known about a sweep, filled with the settings of its first point."""
    point = found["points"][0]
    setting = point["setting"]
    peak = words["peak"]["cpu" if setting["device"] == "cpu" else "gpu"]
    note = words["note"][found["name"]].format(**setting, s="s" * (setting["layers"] > 1), peak=peak)
    return note + "".join(words["note on"].get(row["variant"], "") for row in point["rows"])


def _settings(found: Record, words: Words) -> str:
    """What all points have in common."""
    settings = [point["setting"] for point in found["points"]]
    names = {key: name for key, name in words["settings"].items() if len({each[key] for each in settings}) == 1}
    same = [f"{name} {settings[0][key]:,}" for key, name in names.items()]
    return words["same"].format(settings=words["comma"].join(same))


def _machines(records: dict[str, Record], words: Words) -> str:
    """The machines and the versions, each once."""
    lines = []
    for found in records.values():
        machine = found["machine"]
        for pattern, said in words["machine"].items():
            machine = re.sub(pattern, said, machine)
        versions = words["comma"].join(f"{name} {number}" for name, number in found["versions"].items())
        lines.append(words["measured"].format(machine=machine, versions=versions))
    return "\n".join(dict.fromkeys(lines))
