"""The benchmarks run, their textbook loops do what the callbacks do, and they say what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from pages import read
from support import weights

from benchmarks import memory, overhead, page, reading, record, textbook, variants
from benchmarks.__main__ import ROOT, main
from benchmarks.setting import Setting
from benchmarks.sweeps import QUICK, sweeps
from benchmarks.targets import CHECKS, targets
from benchmarks.timing import Stepper
from benchmarks.words import TITLE
from fastnlp_adv.callbacks import METHODS

TIMED = ("methods", "overhead", "vocabulary", "hidden", "tokens", "steps", "rdrop", "every", "precision")
FREELB = {"init": 0.0}  # textbook and package draw their noise in different orders
LOOPS = {
    "fgm": (*variants.fgm(), 0.0),
    "pgd-3": (*variants.pgd(3), 0.0),
    "freelb": (
        variants.ours("FreeLB", **FREELB),
        variants.by_the_book("FreeLB", "FreeLB", 3, textbook.freelb, **FREELB),
        0.0,
    ),
    "rdrop": (*variants.rdrop()[1:], 0.1),  # the same two forwards draw the same two masks
}


def trained(variant, model, setting, steps=3):
    """How the weights moved, in double precision: by as little as the learning rate of the benchmarks allows."""
    model = model.double()
    before = weights(model)
    stepper = Stepper(model, variant, setting)
    torch.manual_seed(1)
    for _ in range(steps):
        stepper.timed()
    return weights(model) - before


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("ours, book, dropout", LOOPS.values(), ids=LOOPS)
def test_the_textbook_loop_trains_the_same_weights(ours, book, dropout):
    setting = replace(QUICK, dropout=dropout)
    moved = trained(book, setting.model(), setting)
    assert apart(trained(ours, setting.model(), setting), moved) < 1e-6
    assert apart(trained(variants.PLAIN, setting.model(), setting), moved) > 1e-3


@pytest.mark.parametrize("name", ["FGM", "PGD-3", "FGM, skipped step"])
def test_what_a_callback_is_compared_with_trains_the_same_weights(name):
    chosen = {variant.name: variant for variant in overhead.variants()}
    ours, by_hand, plain = (
        trained(chosen[each], overhead.Cheap(QUICK), QUICK) for each in (name, overhead.PAIRS[name], "plain")
    )
    assert apart(ours, by_hand) < 1e-6
    assert apart(plain, by_hand) == 0 if name == "FGM, skipped step" else apart(plain, by_hand) > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_the_limit_follows_from_the_passes(name):
    forwards, backwards, inner = METHODS[name].cost()
    to_weights = name == "SAM"  # its inner pass ends at the weights
    (variant,) = [v for v in variants.every_method() if [type(c) for c in v.callbacks()] == [METHODS[name].callback]]
    doubled = 2 if name == "RDrop" else 1  # one pass, of twice the batch
    assert variant.limit == pytest.approx(doubled * (forwards + 2 * backwards + (1 + to_weights) * inner) / 3)


def test_limits_by_hand():
    found = {variant.name: round(variant.limit, 2) for variant in variants.headline()}
    assert found == {
        "plain": 1.0,
        "FGM": 2.0,
        "FGM, textbook": 2.0,
        "FGM, replace": 1.67,
        "PGD-3": 3.33,
        "PGD-3, textbook": 4.0,
        "FreeLB-3": 3.0,
        "FreeLB-3, textbook": 3.0,
        "R-Drop, concat": 2.0,
        "R-Drop, two_pass": 2.0,
        "R-Drop, textbook": 2.0,
    }


def test_everything_end_to_end(tmp_path, capsys, monkeypatch, young_heap):
    peak = memory.peak  # one variant in a process of its own shows that processes work
    how = {"plain": peak}
    monkeypatch.setattr(
        memory, "peak", lambda variant, setting: how.get(variant, memory.measure_here)(variant, setting)
    )
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    names = list(sweeps())
    for name in names:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"date", "machine", "versions", "command", "points"} <= found.keys()
        assert found["command"] == "python -m benchmarks --quick"
        assert torch.__version__.startswith(found["versions"]["torch"])  # which may lack "+cu121"
        for point in found["points"]:
            assert Setting(**point["setting"])
            assert point["rows"]
            for row in point["rows"]:
                assert row["variant"]
                assert name not in TIMED or len(row["seconds"]) == 2
    printed, shown = capsys.readouterr().out, (tmp_path / "README.md").read_text()
    assert "Targets" in printed
    for name in names:
        assert f"## {TITLE[name]}\n" in shown
        assert (f"({name}.png)" in shown) == (tmp_path / f"{name}.png").exists() == (name != "overhead")
    assert str(tmp_path) not in shown

    rows = {row["variant"]: row for row in record.load(tmp_path, ["reductions"])["reductions"]["points"][0]["rows"]}
    assert rows["PGD-3, textbook"]["reductions"] == 4
    assert all(row["reductions"] == 1 for variant, row in rows.items() if not variant.endswith("textbook"))
    assert set(CHECKS) == {name for name in names if targets(record.load(tmp_path, [name]))}

    # once more: nothing is measured, and the page is the same from the JSON alone
    (tmp_path / "README.md").unlink()
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("measured before") == len(names)
    assert (tmp_path / "README.md").read_text() == shown


def test_the_committed_page_is_made_of_the_committed_records(tmp_path):
    committed = ROOT / "docs" / "benchmarks"
    page.write(record.load(committed, list(sweeps())), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == (committed / "README.md").read_text(encoding="utf-8")


#: a call in docs/methods.md, and the variant that measured it
SHOWN = {
    "FGMCallback()": "FGM",
    "FGMCallback(replace=True)": "FGM, replace",
    "PGDCallback(steps=3)": "PGD-3",
    "FreeLBCallback(steps=3)": "FreeLB-3",
    'RDropCallback(mode="concat")': "R-Drop, concat",
}
in_both_languages = pytest.mark.parametrize("name", ["docs/methods.md", "docs/zh-CN/methods.md"])


def page_in_english_marks(name):
    return read(name).replace("（", " (").replace("）", ")").replace(" 到 ", " to ")


@in_both_languages
@pytest.mark.parametrize("call", SHOWN)
def test_a_page_shows_the_times_of_the_committed_record(name, call):
    (point,) = record.load(ROOT / "docs" / "benchmarks", ["methods"])["methods"]["points"]
    variant = SHOWN[call]
    loop = {"R-Drop, concat": "R-Drop, textbook", "FGM, replace": None}.get(variant, f"{variant}, textbook")
    ours, book = (reading.in_plain_steps(point, each).text(".2f") if each else "" for each in (variant, loop))
    cells = f"| `{call}` | {ours} | {book} | {reading.row(point, variant)['limit']:.2f} |"
    assert cells.replace("|  |", "| |") in page_in_english_marks(name)


@in_both_languages
def test_a_page_shows_the_memory_and_the_large_vocabulary_of_the_committed_records(name):
    found = record.load(ROOT / "docs" / "benchmarks", ["vocabulary", "memory", "overhead"])
    largest, (memory_point,) = found["vocabulary"]["points"][-1], found["memory"]["points"]
    assert (largest["x"], memory_point["setting"]["vocab"], memory_point["setting"]["hidden"]) == (10**6, 250_000, 256)
    variants_shown = ["FGM", "PGD-3", "FGM, textbook", "PGD-3, textbook"]
    steps = [reading.in_plain_steps(largest, each).median for each in variants_shown]
    added = [reading.memory_added(memory_point)[each] for each in variants_shown]
    told = [*(f"{each:.2f}" for each in steps[:2]), *(f"{each:.1f}" for each in steps[2:]), "250", "000", "256"]
    told += [f"{each:.0f}" for each in added]
    after_the_table = read(name).partition("`RDropCallback(mode=")[2].partition("`FGMCallback()`")[2]
    assert re.findall(r"\d+(?:\.\d+)?", after_the_table.replace("steps=3", ""))[: len(told)] == told
    assert all(micro.high < 2000 for micro, _ in reading.overheads(found["overhead"]).values())  # "less than 2 ms"


@pytest.mark.parametrize("wrong", [["--only=nothing"], ["--rounds=1"], ["--device=cuda:99"]])
def test_what_cannot_be_measured_is_refused_in_one_line(wrong, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(wrong)
    assert "Expected `--" in capsys.readouterr().err


def test_what_a_figure_says_is_what_its_record_holds():
    def record(kind, points, **more):
        return {"name": "vocabulary", "kind": kind, "points": points, **more}

    def point(label, **seconds):
        rows = [{"variant": name, "family": name, "limit": 2.0, "seconds": taken} for name, taken in seconds.items()]
        return {"label": label, "rows": rows}

    times = {"plain": [1.0, 2.0], "FGM": [2.0, 4.0], "FGM, textbook": [3.0, 6.0], "PGD": [3.0, 6.0]}
    both = [point("10", **times), point("20", **times, **{"PGD, textbook": [9.0, 18.0]})]
    assert reading.seen(record("time", both)) == "At 20 words, PGD takes 3.0 plain steps, its textbook loop 9.0"
    sized = record("time", both, name="hidden")
    assert reading.seen(sized).startswith("At hidden size 20, PGD takes")
    assert reading.seen(record("time", both[:1])) == "1 of 2 stay at their limit, what their passes come to"
    rows = [{"variant": name, "mib": [mib]} for name, mib in (("plain", 5.0), ("FGM", 7.0), ("FGM, textbook", 25.0))]
    assert reading.seen(record("memory", [{"rows": rows}])) == "FGM adds 2 MiB, its textbook loop 20"
    rows = [{"variant": "FGM", "reductions": 1.0}, {"variant": "FGM, textbook", "reductions": 2.0}]
    assert "reduced once per optimizer step" in reading.seen(record("reductions", [{"rows": rows}]))
