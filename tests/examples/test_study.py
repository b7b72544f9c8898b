"""The study from end to end, on a small table of reviews and a BERT of one layer."""

import argparse
import csv
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import study
import torch
from models import load_model
from pages import blocks
from study import command, figures, outcomes, page, runs
from study.attack import by_changes, under_perturbations
from study.command import TIMED_ROUNDS, build_parser, main
from study.one_run import load_part
from study.outcomes import share
from study.page import accuracies, differences
from study.train import CALLBACKS, METHODS, add_methods, callbacks_of
from study.words import CHINESE, ENGLISH

from fastnlp_adv import (
    FGMCallback,
    GradientPenaltyCallback,
    HotFlip,
    RDropCallback,
    robust_accuracy,
    robust_evaluate,
)

FALLING = {  # the more an attack may do, the less is left
    "attacked": ("attacked_0.5", "attacked_2"),
    "hotflip": ("hotflip_1", "hotflip_2", "hotflip_3"),
    "typos": ("typos_1", "typos_2"),
}
COMMITTED = Path(study.__file__).parents[2] / "docs" / "study"
FOLDERS = [COMMITTED, COMMITTED / "arguments", COMMITTED / "front"]
ATTACKED = ["attacked_0.1", "attacked_0.2", "attacked_0.4", "hotflip_1", "hotflip_3", "typos_1", "typos_2"]
COLUMNS = {name: name for name in ("accuracy", *ATTACKED)}
FIGURES = ("accuracy_by_epsilon.png", "clean_and_robust.png", "cost_and_robust.png")
in_both_languages = pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["English", "Chinese"])


@pytest.fixture(scope="module")
def small(reviews, bert, tmp_path_factory):
    """The arguments of a study of seconds, and the folder that they write to."""
    folder = tmp_path_factory.mktemp("study")
    words = (
        f"--dataset {reviews} --model {bert} --output-dir {folder} --models-dir {folder}/models --device cpu "
        "--epochs 9 --batch-size 8 --lr 0.01 --jobs 1 --seeds 2 "
        "--test-size 5 --epsilons 0.5 2 --attack-steps 2 --restarts 2 --attack-size 8"
    )
    return words.split(), folder


@pytest.fixture(scope="module")
def finished(small):
    arguments, folder = small
    main([*arguments, "--methods", "FGM, plain"])
    return arguments, folder


def rows_of(folder):
    with (folder / "runs.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_is_a_row(finished):
    rows = rows_of(finished[1])
    assert sorted((row["method"], row["seed"]) for row in rows) == [
        (method, seed) for method in ("FGM", "plain") for seed in "01"
    ]
    for row in rows:
        names = [*FALLING["hotflip"], *FALLING["typos"], *FALLING["attacked"], "accuracy"]
        shares = [float(row[name]) for name in names]
        assert all(0 <= share <= 1 for share in shares)
        for names in FALLING.values():
            found = [float(row[name]) for name in ("attacked_0", *names)]
            assert found == sorted(found, reverse=True)
        assert int(row["steps"]) == 36
        assert float(row["train_seconds"]) > 0
    assert len({tuple(list(row.values())[2:]) for row in rows}) == 4  # neither seeds nor methods are copies


def test_the_attacked_texts_are_kept_to_read(finished):
    with (finished[1] / "models" / "plain-0" / "attacked.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["attack"] for row in rows} <= {"hotflip", "typos"}
    assert rows
    for row in rows:
        words = zip(row["original"].split(), row["attacked"].split(), strict=True)
        assert 1 <= sum(a != b for a, b in words) <= (3 if row["attack"] == "hotflip" else 2)


@in_both_languages
def test_the_page_has_the_tables_and_the_figures(words, finished):
    _, folder = finished
    text = (folder / words["file"]).read_text(encoding="utf-8")
    plain = [float(row["accuracy"]) for row in rows_of(folder) if row["method"] == "plain"]
    assert f"| plain | 2 | {100 * np.mean(plain):.1f} ± {100 * np.std(plain, ddof=1):.1f} |" in text
    assert text.count("\n| FGM |") == 2  # accuracy, and the difference to plain training
    assert text.count("\n| plain |") == 1
    seconds = json.loads((folder / "step_seconds.json").read_text())
    assert seconds.keys() == {"FGM", "plain"}
    cost = np.median([ours / plain for ours, plain in zip(seconds["FGM"], seconds["plain"], strict=True)])
    assert len(seconds["plain"]) == TIMED_ROUNDS and re.search(rf"\| FGM \| 2 .*\| {cost:.2f} \|\n", text)
    for name in FIGURES:
        assert f"({name})" in text
        assert matplotlib.image.imread(folder / name)[..., :3].std() > 0.05


def test_what_is_finished_is_not_run_again(finished, monkeypatch):
    """In this process: what came out of others is above."""
    monkeypatch.setattr(command, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    arguments, folder = finished
    before = rows_of(folder)
    kept = [row for row in before if (row["method"], row["seed"]) != ("FGM", "1")]
    with (folder / "runs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(before[0]))
        writer.writeheader()
        writer.writerows(kept)
    saved = {path: path.stat().st_mtime_ns for path in (folder / "models").glob("*/training.json")}
    main([*arguments, "--methods", "FGM, plain, ATTA", "--seeds", "2"])
    after = rows_of(folder)
    assert [row for row in after if row["method"] != "ATTA"] == [*kept, *(row for row in before if row not in kept)]
    assert sum(row["method"] == "ATTA" for row in after) == 2
    assert saved == {path: path.stat().st_mtime_ns for path in saved}  # nor are models trained again


def test_other_settings_do_not_go_into_the_same_table(finished, capsys):
    arguments, _ = finished
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--epochs", "3"])
    assert ended.value.code == 2
    assert "epochs=9 (now 3)" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with the method of the page about adding one, under a name that the package will not take."""
    monkeypatch.setattr("study.train.CALLBACKS", dict(CALLBACKS))
    parts = [part for part in blocks("docs/adding_a_method.md") if "class DropAttack" in part]
    path = tmp_path / "my_methods.py"
    text = "\n".join(["from __future__ import annotations\n", *parts]).replace("DropAttack", "Masked")
    path.write_text(text, encoding="utf-8")
    return path


def test_methods_of_ones_own_are_studied_with_the_others(own, small, tmp_path):
    folder = tmp_path / "study"
    few = f"--output-dir {folder} --models-dir {folder}/models --seeds 1 --epochs 1 --max-flips 0 --max-typos 0"
    main([*small[0], *few.split(), "--methods-from", str(own), "--methods", "plain, Masked keep=0.5 + R-Drop"])
    rows = rows_of(folder)  # trained in another process
    assert [row["method"] for row in rows] == ["plain", "Masked keep=0.5 + R-Drop"]
    text = (folder / ENGLISH["file"]).read_text(encoding="utf-8")
    assert f"--methods-from {own}" in text and "\n| Masked keep=0.5 + R-Drop |" in text


def test_methods_of_ones_own_have_the_names_of_their_classes(own):
    assert add_methods(own) == ["Masked"]
    drop, rdrop = callbacks_of("Masked keep=0.25 + R-Drop")
    assert type(drop).__name__ == "MaskedCallback" and drop.keep == 0.25
    assert isinstance(rdrop, RDropCallback)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("from fastnlp_adv import FGMCallback", "Expected `--methods-from` to be a file with callbacks of methods"),
        ("class Own:\n    method_class = type('FGM', (), {})", "Expected new names in `--methods-from`, but got FGM"),
        (None, "No such file"),
    ],
)
def test_files_without_new_methods_are_refused_in_one_line(text, told, small, tmp_path, capsys):
    path = tmp_path / "my_methods.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main([*small[0], "--methods-from", str(path)])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--methods", "FGM, BGM", "but got BGM"),
        ("--methods", "FGM + BGM", "but got BGM"),
        ("--methods", "FGM epsilom=1", "Did you mean `epsilon`"),
        ("--methods", "FGM epsilon=-1", "Expected `epsilon` to be"),
        ("--methods", "FGM epsilon=one", "non-negative number, but got 'one'"),
        ("--split", "train", "choose from"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(option, value, told, small, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*small[0], option, value])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_method_is_put_together_from_names_and_arguments():
    fgm, rdrop = callbacks_of("FGM epsilon=0.5 emb_name=words + R-Drop")
    assert isinstance(fgm, FGMCallback) and isinstance(rdrop, RDropCallback)
    assert fgm.epsilon == 0.5
    (penalty,) = callbacks_of("gradient penalty")
    assert isinstance(penalty, GradientPenaltyCallback)
    assert callbacks_of("plain") == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_pages_show_the_committed_runs(folder, monkeypatch):
    table = runs.Runs(folder, {}, *runs.read_measured(folder))
    difference = lru_cache(maxsize=None)(lambda *which: outcomes.difference(table, *which))  # once for both languages
    monkeypatch.setattr(page, "difference", lambda _, *which: difference(*which))
    assert table.methods and table.step_seconds.keys() == set(table.methods)
    for words in (ENGLISH, CHINESE):
        text = (folder / words["file"]).read_text(encoding="utf-8")
        for method in table.methods:
            callbacks_of(method)
            assert f"| {' | '.join(accuracies(table, method, COLUMNS))} |" in text
            assert method == "plain" or f"| {' | '.join(differences(table, method, COLUMNS, words=words))} |" in text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_pages_say_the_same_numbers_and_link_to_each_other(folder):
    texts = [(folder / words["file"]).read_text(encoding="utf-8") for words in (ENGLISH, CHINESE)]
    first, second = (sorted(re.findall(r"[-+]?\d+(?:\.\d+)?", text)) for text in texts)
    assert first == second
    for text, other in zip(texts, (CHINESE, ENGLISH), strict=True):
        assert f"]({other['file']})" in text.splitlines()[2]


def test_every_method_has_been_studied_with_five_seeds():
    found = {(row["method"], int(row["seed"])) for row in rows_of(COMMITTED)}
    assert found == set(itertools.product(METHODS, range(5)))


def test_accuracy_under_perturbations_is_that_of_robust_evaluate(finished, bert):
    arguments, folder = finished
    model, tokenizer = load_model(str(folder / "models" / "plain-0"))
    with open(arguments[1], newline="") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: len(row["text"]))
    texts, labels = [row["text"] for row in rows], [int(row["label"] == "True") for row in rows]
    options = {"epsilons": [0.05, 0.5, 4.0], "attack_steps": 4, "restarts": 1, "batch_size": 64, "max_length": 32}
    found = under_perturbations(model, tokenizer, texts, labels, argparse.Namespace(**options))
    shares = {radius: np.mean(right) for radius, right in found.items()}
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    batch = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask, "labels": torch.tensor(labels)}
    expected = robust_evaluate(model, [batch], epsilons=(0.05,), steps=4, restarts=1)
    assert shares[0.0] == pytest.approx(expected[0.0]["accuracy"])
    assert shares[0.05] == pytest.approx(expected[0.05]["accuracy"])
    assert shares[0.0] >= shares[0.05] >= shares[0.5] >= shares[4.0]
    assert shares[4.0] < shares[0.0]
    backwards = under_perturbations(model, tokenizer, texts[::-1], labels[::-1], argparse.Namespace(**options))
    assert backwards[0.5] == found[0.5][::-1]  # in the order of the texts, not of their lengths


def test_a_lower_limit_is_read_off_the_same_search(finished):
    arguments, folder = finished
    model, tokenizer = load_model(str(folder / "models" / "plain-0"))
    with open(arguments[1], newline="") as stream:
        rows = list(csv.DictReader(stream))
    texts, labels = [row["text"] for row in rows], [int(row["label"] == "True") for row in rows]
    found = by_changes("hotflip", HotFlip(model, tokenizer, max_flips=3).attack(texts, labels), 3)
    for n in (1, 2, 3):
        alone = robust_accuracy(HotFlip(model, tokenizer, max_flips=n).attack(texts, labels))
        assert share(found[f"hotflip_{n}"]) == pytest.approx(alone.accuracy)


def test_arguments_are_chosen_on_texts_that_are_not_reported(small):
    arguments, _ = small
    parts = [load_part(build_parser().parse_args([*arguments, *more]), 3) for more in ([], ["--split", "validation"])]
    test, validation = (part.test["text"] for part in parts)
    assert len(test) == len(validation) == 3 and not {*test} & {*validation}
    assert parts[0].train["text"] == parts[1].train["text"]


def test_the_bootstrap_interval_agrees_with_all_resamples():
    differences = [0.01, -0.02, 0.05, 0.03]
    means = sorted(np.mean(drawn) for drawn in itertools.product(differences, repeat=4))
    low, high = runs.interval(differences)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=2e-3)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=2e-3)


def test_one_seed_shows_no_spread():
    rows = {("plain", 0): {"accuracy": 0.5}, ("FGM", 0): {"accuracy": 0.6}}
    table = runs.Runs(Path(), {}, rows, {"plain": [1.0, 2.0, 4.0], "FGM": [2.0, 3.0, 8.0]})
    assert accuracies(table, "FGM", {"clean": "accuracy"}) == ["FGM", "1", "60.0", "2.00"]
    assert differences(table, "FGM", {"clean": "accuracy"}) == ["FGM", "+10.0"]


def test_the_spread_of_one_run_is_zero():
    assert runs.spread([0.5]) == 0
    assert runs.spread([0.5, 0.7]) == pytest.approx(2**0.5 / 10)


def test_figures_say_what_the_runs_hold_and_leave_out_what_learned_nothing(tmp_path):
    found = runs.Runs(tmp_path, {"epsilons": [0.1, 0.2]})
    for method, clean, left in (("plain", 0.8, 0.2), ("FGM", 0.81, 0.3), ("PGD", 0.78, 0.4), ("AWP", 0.5, 0.5)):
        attacked = {"attacked_0": clean, "attacked_0.1": left, "attacked_0.2": left}
        found.add({"method": method, "seed": 0, "accuracy": clean, **attacked})
    found.step_seconds = {"plain": [1.0, 2.0], "FGM": [2.0, 4.0], "PGD": [3.0, 6.0], "AWP": [2.0, 4.0]}
    clean, left = figures.table_of(found, "accuracy", 100), figures.table_of(found, "attacked_0.1", 100)
    cost = figures.in_plain_steps(found)
    assert cost["PGD"] == [3.0, 3.0]
    out = "(without 1 that lose more than 3 points of clean accuracy)"
    assert figures.of_clean(found, clean, left) == (
        f"2 of 2 keep more than plain training under attack, 1 of them at no loss of clean accuracy {out}"
    )
    assert figures.of_cost(found, cost, left, 0.1) == f"PGD keeps the most at ε = 0.1, 40 %, for 3.0 plain steps {out}"
    (axes,) = figures.scatter(found, cost, left, ("x", "y"), "title").axes
    assert {text.get_text() for text in axes.texts} == {"plain", "FGM", "PGD", "AWP"}  # at the points, not in a legend


def compared_with_plain(folder):
    """Read the table of differences to plain training, in English: cells by method."""
    text = (folder / "results.md").read_text(encoding="utf-8").split("## Differences to plain training")[1]
    rows = re.findall(r"^\| (.+) \|$", text.split("\n## ")[0].replace(" – ", " to "), flags=re.M)
    return {name: cells for name, *cells in (row.split(" | ") for row in rows)}


@pytest.mark.parametrize("method", CALLBACKS)
def test_the_card_of_a_method_cites_the_study_and_the_call(method):
    """The call is that of the program on the card, and trains at the defaults, as the study did."""
    callback = CALLBACKS[method]
    docs = Path(__file__).parents[2] / "docs"
    cards = [(path, path.read_text(encoding="utf-8")) for path in (docs / "methods").glob("*.md")]
    ((path, card),) = [each for each in cards if f"\ncallback = {callback.__name__}(" in each[1]]
    call = re.search(r"^callback = (.*)$", card, flags=re.M)[1]
    given, defaults = eval(call, {callback.__name__: callback}), callback()
    assert all(getattr(given, name) == getattr(defaults, name) for name in re.findall(r"(\w+)=", call))
    found = {
        cell for name in ("", "chinese-reviews") for cell in compared_with_plain(docs / "study" / name).get(method, ())
    }
    if not found:
        assert "| Measured |" not in card
        return
    (measured,) = re.findall(r"^\| Measured \| (.*) \|$", card, flags=re.M)
    assert measured.startswith(f"`{call}`")
    shown = re.findall(r"[+-][\d.]+ \([^)]*\)", measured)
    assert shown and {*shown} <= found
    chinese = (docs / "zh-CN" / "methods" / path.name).read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| 实测 \| (.*) \|$", chinese, flags=re.M)
    assert row.startswith(f"`{call}`")
    assert re.findall(r"[+-]\d+\.\d", row) == re.findall(r"[+-]\d+\.\d", measured)
