"""The study of defaults from end to end, on small data."""

import csv

import pytest
from study.runs import Runs
from study_defaults import command, page


def rows(folder, task):
    with (folder / task / "runs.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_models_are_trained_compared_and_not_trained_again(reviews, tmp_path, capsys):
    words = ["--dataset", str(reviews), "--train-size", "32", "--attack-size", "8", "--output-dir", str(tmp_path)]
    words += ["--tasks", "bilstm, cnn", "--methods", "plain, FGM warmup=0.5"]
    command.main([*words, "--seeds", "1"])
    before = {task: rows(tmp_path, task) for task in ("bilstm", "cnn")}
    command.main([*words, "--seeds", "2"])
    for task, known in before.items():
        found = rows(tmp_path, task)
        assert found[:2] == known
        assert {(row["method"], row["seed"]) for row in found} == {
            (method, seed) for method in ("plain", "FGM warmup=0.5") for seed in "01"
        }
        for row in found:
            assert int(row["steps"]) == 3  # a batch of 32 texts in each epoch
            assert 0 <= float(row["robust"]) <= float(row["attacked_0"]) <= 1
            assert 0 <= float(row["clean"]) <= 1
    english, chinese = ((tmp_path / name).read_text() for name in ("results.md", "results.zh-CN.md"))
    assert "## BiLSTM from scratch" in english and "| FGM warmup=0.5 | 2 |" in english
    assert "## 从头训练的 BiLSTM" in chinese and "| FGM warmup=0.5 | 2 |" in chinese


def test_what_there_is_not_is_said_in_one_line(tmp_path, capsys):
    for wrong, reason in ((["--tasks", "gpt"], "`--tasks`"), (["--methods", "sgd"], "`--methods`")):
        with pytest.raises(SystemExit):
            command.main([*wrong, "--output-dir", str(tmp_path)])
        assert reason in capsys.readouterr().err.splitlines()[-1]


def test_the_page_counts_what_has_learned_and_pairs_seeds(tmp_path):
    runs = Runs(tmp_path, {})
    for method, clean, last in (("plain", (0.8, 0.7), (0.3, 0.4)), ("FGM", (0.5, 0.69), (0.69, 0.5))):
        for seed in (0, 1):
            measured = {"clean": clean[seed], "robust": 0.4, "first_loss": 0.7, "last_loss": last[seed]}
            runs.add({"method": method, "seed": seed, **measured})
    name, seeds, learned, clean, robust, gap, _ = page._row(runs, "FGM")
    assert (name, seeds, learned, clean, robust) == ("FGM", "2", "1/2", "59.5 ± 13.4", "40.0 ± 0.0")
    assert gap == "-15.5 (-30.0 – -1.0)"
    assert page._row(runs, "plain")[-2:] == ["", ""]
