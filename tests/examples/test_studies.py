"""The studies from end to end, on a small table of reviews and a BERT of one layer."""

import argparse
import csv
import re
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from models import load_model
from pages import blocks

from fastnlp_adv import FGMCallback, GradientPenaltyCallback, HotFlip, RDropCallback, __version__
from fastnlp_adv.robustness import robust_accuracy, robust_evaluate
from studies.command import TIMED_ROUNDS, main
from studies.methods import CALLBACKS, add_methods, callbacks_of
from studies.runs import read_runs, share
from studies.tasks.base import TIMED_STEPS, load_part
from studies.tasks.encoder import by_changes, under_perturbations

FALLING = {  # the more an attack may do, the less is left
    "attacked": ("attacked_0.5", "attacked_2"),
    "hotflip": ("hotflip_1", "hotflip_2", "hotflip_3"),
    "typos": ("typos_1", "typos_2"),
}


@pytest.fixture(scope="module")
def small(reviews, bert, tmp_path_factory):
    """The arguments of a study of seconds, and the folder that they write to."""
    folder = tmp_path_factory.mktemp("study")
    words = (
        f"encoder --dataset {reviews} --model {bert} --output-dir {folder} --device cpu --epochs 9 --batch-size 8 "
        "--lr 0.01 --test-size 5 --epsilons 0.5 2 --attack-steps 2 --restarts 2 --attack-size 8 --seeds 3"
    )
    return words.split(), folder


@pytest.fixture(scope="module")
def finished(small):
    """In two processes."""
    arguments, folder = small
    main([*arguments, "--methods", "FGM, plain"])
    return arguments, folder


@pytest.fixture(scope="module")
def trained(finished, reviews):
    model, tokenizer = load_model(str(finished[1] / "models" / "plain-0"))
    with reviews.open(newline="") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: len(row["text"]))
    texts, labels = [row["text"] for row in rows], [int(row["label"] == "True") for row in rows]
    return SimpleNamespace(model=model, tokenizer=tokenizer, texts=texts, labels=labels)


def test_a_run_is_a_row(finished):
    runs = read_runs(finished[1])
    assert sorted(runs.rows) == [("", method, seed) for method in ("FGM", "plain") for seed in range(3)]
    for key, row in runs.rows.items():
        assert (row["steps"], row["version"]) == (36, __version__) and row["train_seconds"] > 0
        assert row["learned"] in (0, 1) and 0 <= row["clean"] <= 1
        for names in FALLING.values():
            found = [row[name] for name in ("attacked_0", *names)]
            assert found == sorted(found, reverse=True) and found[-1] >= 0 and found[0] <= 1
        assert {name: row[name] for name in runs.outcomes[key]} == {
            name: pytest.approx(share(counts)) for name, counts in runs.outcomes[key].items()
        }
    assert len({(row["clean"], row["train_seconds"]) for row in runs.rows.values()}) == 6


def test_the_attacked_texts_are_kept_to_read(finished):
    folder = finished[1] / "models" / "plain-0"
    with (folder / "attacked.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows and {row["attack"] for row in rows} <= {"hotflip", "typos"}
    for row in rows:
        words = zip(row["original"].split(), row["attacked"].split(), strict=True)
        assert 1 <= sum(a != b for a, b in words) <= (3 if row["attack"] == "hotflip" else 2)
    assert (folder / "report.html").read_text(encoding="utf-8").count("<article") == 2 * 5  # both attacks on each text


def test_the_page_has_the_tables_and_the_figures(finished):
    runs, text = read_runs(finished[1]), (finished[1] / "results.md").read_text(encoding="utf-8")
    plain = [100 * each for each in runs.values("plain", "clean").values()]
    assert f"| plain | 3 | {runs.learned('plain')} | {np.mean(plain):.1f} ± {np.std(plain, ddof=1):.1f} |" in text
    assert "| method | seeds | learned | clean | ε = 0 | ε = 0.5 | ε = 2 | 1 flip | 3 flips |" in text
    cost = np.median([times["FGM"] / times["plain"] for times in runs.rounds])
    assert re.search(rf"\| FGM \| 3 .*\| {cost:.2f} \|\n", text)
    for name in ("accuracy_by_epsilon.png", "cost_and_robust.png"):
        assert f"({name})" in text
        assert matplotlib.image.imread(finished[1] / name)[..., :3].std() > 0.05


def test_finished_runs_are_not_repeated(finished):
    arguments, folder = finished
    files = ("runs.csv", "outcomes.json.gz", "results.md", "study.json")
    before = {name: (folder / name).read_bytes() for name in files}
    runs = read_runs(folder)
    last = list(runs.rows)[-1]
    outcomes = runs.outcomes.pop(last)
    row = runs.rows.pop(last)
    runs.save()
    saved = {path: path.stat().st_mtime_ns for path in (folder / "models").glob("*/training.json")}
    main([*arguments, "--methods", "FGM, plain", "--jobs", "1"])
    assert read_runs(folder).rows[last] == row and read_runs(folder).outcomes[last] == outcomes
    assert saved == {path: path.stat().st_mtime_ns for path in saved}  # nor are models trained again
    main(["render", str(folder)])
    for name in files[:2]:
        assert (folder / name).read_bytes() == before[name]
    main([*arguments, "--methods", "FGM, plain, FGM every=4", "--jobs", "1", "--seeds", "1"])
    runs = read_runs(folder)
    assert len(runs.rows) == 7 and len(runs.cost("FGM")) == len(runs.cost("FGM every=4")) == TIMED_ROUNDS
    assert len(runs.rounds) == 2 * TIMED_ROUNDS and TIMED_STEPS % 4 == 0  # timed beside plain training alone


def test_other_settings_do_not_go_into_the_same_table(finished, refused):
    assert "epochs=9 (now 3)" in refused(main, [*finished[0], "--epochs", "3"])


def test_a_mistyped_data_set_leaves_the_folder_usable(tmp_path, reviews, refused):
    for task in ("encoder", "defaults", "reviews"):
        assert "no file absent.csv" in refused(main, [task, "--dataset", "absent.csv", "--output-dir", tmp_path])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with the method of the page about adding one, under a name that the package will not take."""
    monkeypatch.setattr("studies.methods.CALLBACKS", dict(CALLBACKS))
    parts = [part for part in blocks("docs/adding_a_method.md") if "class DropAttack" in part]
    path = tmp_path / "my_methods.py"
    text = "\n".join(["from __future__ import annotations\n", *parts]).replace("DropAttack", "Masked")
    path.write_text(text, encoding="utf-8")
    return path


def test_methods_of_ones_own_are_studied_and_a_page_without_success_is_honest(own, small, tmp_path, capsys):
    few = "--seeds 2 --epochs 1 --lr 1e-6 --max-flips 0 --max-typos 0 --output-dir"
    methods = ["--methods-from", str(own), "--methods", "plain, Masked keep=0.5 + R-Drop"]
    main([*small[0], *few.split(), str(tmp_path / "study"), *methods])
    rows = read_runs(tmp_path / "study").rows.values()  # trained in other processes
    assert {row["method"] for row in rows} == {"plain", "Masked keep=0.5 + R-Drop"}
    text = (tmp_path / "study" / "results.md").read_text(encoding="utf-8")
    assert f"--methods-from {own}" in text and "\n| Masked keep=0.5 + R-Drop | 2 | 0 |" in text
    assert "No method learned anything" in text and "No method learned anything" in capsys.readouterr().out
    assert "Differences to" not in text and ".png" not in text


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
def test_files_without_new_methods_are_refused_in_one_line(text, told, small, tmp_path, refused):
    path = tmp_path / "my_methods.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert told in refused(main, [*small[0], "--methods-from", path])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("encoder --methods FGM,BGM", "but got BGM"),
        ("reviews --methods FGM+BGM", "but got FGM+BGM"),
        ("encoder --methods FGM§epsilom=1", "Did you mean `epsilon`"),
        ("encoder --methods FGM§epsilon=one", "non-negative number, but got 'one'"),
        ("encoder --split train", "choose from"),
        ("defaults --models gpt", "Expected `--models` to be of bilstm"),
        ("ner --edits 0", "at least 1"),
        ("render absent", "it has no study.json"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(words, told, refused):
    assert told in refused(main, [word.replace("§", " ") for word in words.split()])


def test_a_method_is_put_together_from_names_and_arguments():
    fgm, rdrop = callbacks_of("FGM epsilon=0.5 emb_name=words + R-Drop")
    assert isinstance(fgm, FGMCallback) and isinstance(rdrop, RDropCallback)
    assert fgm.epsilon == 0.5
    (penalty,) = callbacks_of("gradient penalty")
    assert isinstance(penalty, GradientPenaltyCallback)
    assert callbacks_of("plain") == []


def test_accuracy_under_perturbations_is_that_of_robust_evaluate(trained):
    options = {"epsilons": [0.05, 0.5, 4.0], "attack_steps": 4, "restarts": 1, "batch_size": 64, "max_length": 32}
    args = argparse.Namespace(**options)
    found = under_perturbations(trained.model, trained.tokenizer, trained.texts, trained.labels, args)
    shares = {radius: np.mean(right) for radius, right in found.items()}
    encoded = trained.tokenizer(trained.texts, padding=True, return_tensors="pt")
    batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.tensor(trained.labels)
    expected = robust_evaluate(trained.model, [batch], epsilons=(0.05,), steps=4, restarts=1)
    assert shares[0.0] == pytest.approx(expected[0.0]["accuracy"])
    assert shares[0.05] == pytest.approx(expected[0.05]["accuracy"])
    assert shares[0.0] >= shares[0.05] >= shares[0.5] >= shares[4.0] < shares[0.0]
    backwards = [trained.texts[::-1], trained.labels[::-1]]
    assert under_perturbations(trained.model, trained.tokenizer, *backwards, args)[0.5] == found[0.5][::-1]


def test_a_lower_limit_is_read_off_the_same_search(trained):
    def attack(n):
        return HotFlip(trained.model, trained.tokenizer, max_flips=n).attack(trained.texts, trained.labels)

    found = by_changes("hotflip", attack(3), 3)
    for n in (1, 2, 3):
        assert share(found[f"hotflip_{n}"]) == pytest.approx(robust_accuracy(attack(n)).accuracy)


def test_arguments_are_chosen_on_texts_that_are_not_reported(reviews):
    test, validation = (load_part(str(reviews), 20, 3, split) for split in ("test", "validation"))
    assert len(test.test) == len(validation.test) == 3
    assert not {*test.test["text"]} & {*validation.test["text"]}
    assert test.train["text"] == validation.train["text"]
    with pytest.raises(ValueError, match="leave texts for validation"):
        load_part(str(reviews), 1000, 1000, "validation")


def test_a_study_of_several_models_has_a_table_of_each(reviews, tmp_path):
    words = f"defaults --dataset {reviews} --train-size 32 --attack-size 8 --output-dir {tmp_path} --jobs 1 --seeds 1"
    words = [*words.split(), "--models", "bilstm, cnn", "--methods", "plain, FGM warmup=0.5"]
    main(words)
    before = (tmp_path / "runs.csv").read_text()
    main([*words, "--seeds", "2"])
    assert (tmp_path / "runs.csv").read_text().startswith(before)
    runs = read_runs(tmp_path)
    assert {*runs.rows} == {
        (m, name, s) for m in ("bilstm", "cnn") for name in ("plain", "FGM warmup=0.5") for s in (0, 1)
    }
    for row in runs.rows.values():
        assert row["steps"] == 3  # a batch of 32 texts in each epoch
        assert 0 <= row["attacked_0.1"] <= row["attacked_0"] <= 1
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "## BiLSTM from scratch" in text and "## fastNLP's `CNNText` from scratch" in text
    assert text.count("| FGM warmup=0.5 | 2 |") == 2 and "cost" not in text.split("| method |")[1]
