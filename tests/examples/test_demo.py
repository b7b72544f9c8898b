"""The demo on a small table of reviews and a BERT of one layer, and the sentence that it ends with."""

import csv
import json
import math
import os

import demo
import pytest
import report
from data import load_data
from fastNLP import logger
from models import load_model
from rich.console import Console

from fastnlp_adv import FGMCallback, RDropCallback, Typos
from fastnlp_adv.robustness import robust_accuracy

COLUMNS = ["clean texts", "vectors 0.1", "vectors 0.2", "one typo"]


@pytest.fixture(autouse=True)
def log_kept():
    """Leave fastNLP's log as it was."""
    handlers = list(logger.handlers)
    yield
    logger.handlers[:] = handlers


@pytest.fixture
def arguments(reviews, bert, tmp_path):
    words = f"--dataset {reviews} --model {bert} --output-dir {tmp_path} --device cpu --lr 0.01 --epochs 4"
    return [*words.split(), "--batch-size", "8", "--attack-size", "6"]


def compared(method, *columns, seconds=0.25):
    names = ("clean texts", "one typo")
    return report.Comparison(method, seconds, dict(zip(names, columns, strict=True)))


def test_the_demo_attacks_each_method_and_saves_what_came_out(arguments, tmp_path, capsys):
    results = demo.main(arguments)
    out = capsys.readouterr().out.splitlines()
    assert [result.method for result in results] == [
        "plain",
        "FGMCallback(epsilon=1.0)",
        "FGMCallback(epsilon=1.0, fraction=0.25, replace=True)",
        "RDropCallback(kl_weight=1.0)",
    ]
    for result in results:
        assert list(result.right) == COLUMNS
        clean, near, far, typo = result.right.values()
        assert [len(clean), len(near), len(far), len(typo)] == [8, 6, 6, 6]  # a fifth of 40 texts is held out
        # an attack sets no text right, nor does a larger one
        assert all(a >= b >= c for a, b, c in zip(clean[:6], near, far, strict=True))
        assert all(a >= d for a, d in zip(clean[:6], typo, strict=True) if d is not None)
        assert result.step_seconds > 0
        assert any(result.method in line for line in out)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["vectors 0.1"]) for row in rows] == [result.accuracy("vectors 0.1")[0] for result in results]
    for folder, result in zip(("plain", "fgm", "fgm-quarter", "r-drop"), results, strict=True):
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        assert metrics["one typo"] == result.accuracy("one typo")[0]
        assert metrics["settings"]["attack_size"] == 6
        assert {"config.json", "tokenizer.json"} <= set(os.listdir(tmp_path / folder))
    assert report.sentence(results[1], results[0]) in " ".join(" ".join(out).split())


def test_the_output_fits_into_80_columns(arguments, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    demo.main(arguments)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    # the path of the data, in the first line, and that of the results, in the last ones, may be long
    shown = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("Saved in"))]
    shown = [line for line in shown if not line.startswith("Expected ")]  # warnings, of so small a training
    assert max(map(len, shown)) <= 80
    assert [line for line in shown if not line.strip()] == [""]  # between the table and the sentence
    assert [line.split()[0] for line in lines if "━" in line] == (["training", "clean", "word", "one"] * 4)
    assert "rogress" not in printed.err + printed.out  # fastNLP's warning of a training without a progress bar


def test_the_attacks_are_those_of_the_package_on_the_saved_models(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "RADII", (0.1, 50.0))
    results = demo.main([*arguments, "--epochs", "10", "--attack-size", "8"])
    plain = results[0]
    # one radius too small to fool a model that has learned, and one that fools every model
    assert [plain.accuracy(column)[0] for column in ("clean texts", "vectors 0.1", "vectors 50.0")] == [1, 1, 0]
    for folder, result in zip(demo.FOLDERS, results, strict=True):
        model, tokenizer = load_model(str(tmp_path / folder))
        texts, labels = zip(*demo.choose(load_data(arguments[1]), 8, 8), strict=True)
        found = Typos(model, tokenizer, max_typos=1, candidates=8).attack(texts, labels)
        assert result.accuracy("one typo")[0] == robust_accuracy(found).accuracy


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_a_method_is_named_by_its_call(size):
    names = {"FGMCallback": FGMCallback, "RDropCallback": RDropCallback}
    made = demo.methods(size, size)
    assert made.pop("plain") == []
    assert len(made) == len(demo.FOLDERS) - 1
    for name, (callback,) in made.items():
        read = eval(name, names)
        assert type(read) is type(callback)
        assert read.values() == callback.values()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--kl-weight", "nan"], "`kl_weight`"),
        (["--attack-size", "0"], "whole number of at least 1, but got '0'"),
        (["--model", "absent"], "`--model absent`"),
        (["--output-dir", __file__], "test_demo.py"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(wrong, reason, arguments, refused, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert reason in refused(demo.main, [*arguments, *wrong])


def test_the_sentence_says_which_differences_are_clear():
    plain = compared("plain", [True] * 80 + [False] * 20, [True] * 30 + [False] * 70)
    other = compared("FGM", [True] * 78 + [False] * 22, [True] * 45 + [False] * 55, seconds=0.5)
    # 2 of 100 texts lost: 2 points, sqrt(0.02 * 0.98 / 100) = 1.4; 15 won: 15 points, sqrt(0.15 * 0.85 / 100) = 3.6
    assert report.sentence(other, plain) == (
        "FGM is ahead of plain on one typo (+15.0 ±3.6), not clearly apart from plain on clean texts (-2.0 ±1.4); "
        "a step takes 2.0 times as long."
    )
    assert report.sentence(plain, other) == (
        "plain is behind FGM on one typo (-15.0 ±3.6), not clearly apart from FGM on clean texts (+2.0 ±1.4); "
        "a step takes 0.5 times as long."
    )


def test_the_sentence_claims_nothing_where_no_difference_is_clear():
    plain = compared("plain", [True, False] * 50, [True, False] * 50)
    other = compared("FGM", [True, False] * 49 + [True, True], [False, True] * 20 + [True, False] * 30)
    assert report.sentence(other, plain) == (
        "FGM is not clearly apart from plain on clean texts (+1.0 ±1.0) and one typo (+0.0 ±6.3); "
        "a step takes 1.0 times as long."
    )


def test_standard_errors_are_binomial_and_those_of_differences_paired():
    half = compared("half", [True, False] * 50, [True, None, False, None])
    same = compared("same", [True, False] * 50, [None, True, True, True])
    assert half.accuracy("clean texts") == (0.5, pytest.approx(math.sqrt(0.5 * 0.5 / 100)))
    assert half.difference(same, "clean texts") == (0, 0)  # the same answers, so it is certain
    assert half.accuracy("one typo")[0] == 0.5  # texts that cannot be changed do not count
    assert half.difference(same, "one typo")[0] == -1  # the third text is the only one that both have


def test_the_table_shows_percentages_and_cost(capsys):
    results = [compared("plain", [True, False] * 50, [True] * 100)]
    results.append(compared("FGM", [True] * 100, [True, False] * 50, seconds=0.51))
    report.print_comparison(results, Console(width=80))
    plain, fgm = capsys.readouterr().out.splitlines()[-2:]
    assert plain.split() == ["plain", "50.0", "±5.0", "100.0", "±0.0", "1.00"]
    assert fgm.split() == ["FGM", "100.0", "±0.0", "50.0", "±5.0", "2.04"]
