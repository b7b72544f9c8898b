"""What the pages of the studies say: statistics, and the committed pages."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from studies import figures, page
from studies.methods import CALLBACKS, callbacks_of
from studies.runs import VERSIONS, Runs, interval, read_runs
from studies.tasks import TASKS

DOCS = Path(__file__).parents[2] / "docs"
FOLDERS = sorted(path.parent for path in (DOCS / "study").rglob("study.json"))
SETTINGS = {name: default for name, (default, _) in TASKS["encoder"].settings.items()} | dict.fromkeys(VERSIONS, "1")


@pytest.fixture
def table(tmp_path):
    return Runs(tmp_path, {"task": "encoder", "settings": SETTINGS, "command": "", "machine": ""})


def add(table, method, seed, outcomes, **measured):
    row = {"method": method, "seed": seed, "version": "", "learned": 1, "clean": 0.8, **measured}
    table.add(
        row, {name: [None if each is None else [each, 1.0] for each in counts] for name, counts in outcomes.items()}
    )


def test_intervals_are_over_seeds_and_texts(table):
    """With texts all alike the interval is that over seeds; with seeds all alike it is that over texts."""
    for method, shares in {"plain": (0.2, 0.4, 0.6), "FGM": (0.5, 0.9, 0.7)}.items():
        for seed, share in enumerate(shares):
            add(table, method, seed, {"typos_1": [share] * 50}, clean=share)
    mean, low, high = table.difference("plain", "FGM", "typos_1")
    expected = interval([30.0, 50.0, 10.0])
    assert mean == pytest.approx(30) and (low, high) == pytest.approx(expected, abs=1.5)
    assert table.difference("FGM", "plain", "typos_1") == pytest.approx((-mean, -high, -low))
    assert table.difference("plain", "FGM", "clean")[1:] == pytest.approx(expected)  # not known for each text
    assert table.difference("plain", "PGD", "clean") is None
    for method, seed in itertools.product(("plain", "FGM"), range(3)):
        right = [1.0 if method == "FGM" and i < 20 else 0.0 for i in range(50)]
        add(table, method, seed, {"typos_1": right})
    mean, low, high = table.difference("plain", "FGM", "typos_1")
    half = 1.96 * 100 * math.sqrt(0.4 * 0.6 / 50)
    assert mean == pytest.approx(40) and (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_texts_without_candidates_do_not_count(table):
    for seed, (method, counts) in itertools.product(
        range(2), {"plain": [0.0, 1.0, None], "FGM": [1.0, 1.0, None]}.items()
    ):
        add(table, method, seed, {"typos_1": counts * 20})
    assert table.rows["", "plain", 0]["typos_1"] == pytest.approx(0.5)
    mean, low, high = table.difference("plain", "FGM", "typos_1")
    assert mean == pytest.approx(50) and 0 < low < 50 < high < 100


def test_the_bootstrap_interval_agrees_with_all_resamples():
    differences = [0.01, -0.02, 0.05, 0.03]
    means = sorted(np.mean(drawn) for drawn in itertools.product(differences, repeat=4))
    assert interval(differences) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=2e-3)


def test_files_are_read_as_written_and_have_the_same_bytes_each_time(table):
    add(table, "plain", 0, {"typos_1": [1.0, None]}, version="0.2.0")
    first = (table.folder / "outcomes.json.gz").read_bytes()
    again = read_runs(table.folder)
    assert (again.rows, again.outcomes, again.about) == (table.rows, table.outcomes, table.about)
    again.save()
    assert (table.folder / "outcomes.json.gz").read_bytes() == first


QUARTER = "FGM fraction=0.25 replace=True warmup=auto"


def study(table, clean, left, cost, seeds=5):
    """A plain training, FGM and a quarter, with these shares of right texts among 1000."""
    columns = [name for name in TASKS["encoder"].columns(SETTINGS) if name != "clean"]
    for method, seed in itertools.product(clean, range(seeds)):
        add(table, method, seed, {name: [1.0] * left[method] + [0.0] * (1000 - left[method]) for name in columns})
        table.rows["", method, seed]["clean"] = clean[method] + seed / 1000
    table.rounds = [cost]
    return page.page(table, [])


@pytest.mark.parametrize(
    ("clean", "left", "cost", "answer"),
    [
        (0.81, 600, 1.2, "yes"),
        (0.81, 593, 1.2, "open, for robustness"),
        (0.81, 550, 1.2, "no, for robustness"),
        (0.79, 600, 1.2, "no, for clean accuracy"),
        (0.81, 600, 1.3, "no, for cost"),
        (0.81, 600, None, "open, for cost"),
    ],
)
def test_the_question_about_a_quarter_is_answered_from_the_rows(clean, left, cost, answer, table):
    cost = {} if cost is None else {"plain": 1.0, "FGM": 2.0, QUARTER: cost}
    text = study(table, {"plain": 0.8, "FGM": 0.8, QUARTER: clean}, {"plain": 400, "FGM": 600, QUARTER: left}, cost)
    (told,) = re.findall(r"^- `FGM fraction.*$", text, flags=re.M)
    assert told.startswith(f"- `{QUARTER}`, 5 seeds: **{answer}**.")
    assert f"Clean accuracy against plain training: {100 * (clean - 0.8):+.1f}" in told
    assert "ε = 0.2" in told and "ε = 0.4" not in told and "2 typos" in told


def test_figures_say_what_the_runs_hold_and_leave_out_methods_that_learned_nothing(table):
    for method, clean, left in (("plain", 0.8, 0.2), ("FGM", 0.81, 0.3), ("PGD", 0.78, 0.4), ("AWP", 0.5, 0.5)):
        add(table, method, 0, {}, clean=clean, learned=int(clean > 0.5), **{"attacked_0.1": left})
    table.rounds = [{"plain": n, "FGM": 2 * n, "PGD": 3 * n, "AWP": 2 * n} for n in (1.0, 2.0)]
    assert table.cost("PGD") == [3.0, 3.0] and table.cost("NEFTune") == []
    (axes,) = figures.cost_and_robust(table, "attacked_0.1", "ε = 0.1").axes
    title = axes.get_title(loc="left").replace("\n", " ")
    assert title == (
        "PGD keeps the most (ε = 0.1): 40 %, for 3.0 plain steps "
        "(without 1 that lose more than 3 points of clean accuracy)"
    )
    assert {text.get_text() for text in axes.texts} == {"plain", "FGM", "PGD", "AWP"}
    assert figures.draw(table, TASKS["encoder"]) == []  # of one seed


def test_one_seed_has_no_spread_and_no_learning_no_difference(table):
    for method, clean, learned in (("plain", 0.5, 1), ("FGM", 0.6, 1), ("PGD", 0.3, 0)):
        add(table, method, 0, {}, clean=clean, learned=learned)
    columns = {"clean": "clean"}
    assert page.values(table, "FGM", columns) == ["FGM", "1", "1", "60.0", ""]
    assert page.cell(table, "FGM", table.difference("plain", "FGM", "clean")) == "+10.0"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_pages_show_the_committed_runs(folder):
    runs, text = read_runs(folder), (folder / "results.md").read_text(encoding="utf-8")
    for method in runs.methods:
        callbacks_of(method)
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert re.findall(r"\]\((\w+\.png)\)", text) == pictures
    assert page.page(runs, pictures) == text
    assert all((folder / "outcomes.json.gz").stat().st_size < 150_000 for _ in runs.outcomes)


def test_every_method_has_been_studied_with_five_seeds():
    assert {*read_runs(DOCS / "study").rows} == set(itertools.product([""], TASKS["encoder"].methods, range(5)))


def compared_with_plain(folder):
    """Read the table of differences to plain training: cells by method."""
    text = (folder / "results.md").read_text(encoding="utf-8").split("## Differences to plain training")[1]
    rows = re.findall(r"^\| (.+) \|$", text.split("\n## ")[0], flags=re.M)
    return {name: cells for name, *cells in (row.split(" | ") for row in rows)}


@pytest.mark.parametrize("method", CALLBACKS)
def test_the_card_of_a_method_cites_the_study_and_the_call(method):
    """The call is that of the program on the card, and trains at the defaults, as the study did."""
    callback = CALLBACKS[method]

    cards = [(path, path.read_text(encoding="utf-8")) for path in (DOCS / "methods").glob("*.md")]
    ((path, card),) = [each for each in cards if f"\ncallback = {callback.__name__}(" in each[1]]
    call = re.search(r"^callback = (.*)$", card, flags=re.M)[1]
    given, defaults = eval(call, {callback.__name__: callback}), callback()
    assert all(getattr(given, name) == getattr(defaults, name) for name in re.findall(r"(\w+)=", call))
    found = {
        cell for name in ("", "chinese-reviews") for cell in compared_with_plain(DOCS / "study" / name).get(method, ())
    }
    if not found:
        assert "| Measured |" not in card
        return
    (measured,) = re.findall(r"^\| Measured \| (.*) \|$", card, flags=re.M)
    assert measured.startswith(f"`{call}`")
    shown = re.findall(r"[+-][\d.]+ \([^)]*\)", measured)
    assert shown and {*shown} <= found
    chinese = (DOCS / "zh-CN" / "methods" / path.name).read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| 实测 \| (.*) \|$", chinese, flags=re.M)
    assert row.startswith(f"`{call}`")
    assert re.findall(r"[+-]\d+\.\d", row) == re.findall(r"[+-]\d+\.\d", measured)
