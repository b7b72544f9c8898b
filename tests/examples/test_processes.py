"""An example in several real processes."""

import json
from pathlib import Path

import launch
import pytest
import torch
import torch.distributed as dist
import train_text_classification as script
from data import load_data
from processes import torchrun
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def accuracy(folder, data):
    """Of what was saved, text by text."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits for text in data.test["text"]]
    return sum(int(row.argmax()) == label for row, label in zip(logits, data.test["label"], strict=True)) / len(logits)


def test_trains_in_two_processes_under_torchrun(reviews, bert, tmp_path):
    method = "fgm+rdrop"
    words = f"--method {method} --dataset {reviews} --model {bert} --output-dir {tmp_path} --device cpu --epochs 4"
    done = torchrun(script.__file__, 2, *words.split(), "--batch-size", 4, "--lr", 0.01)
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((tmp_path / method / "metrics.json").read_text())
    assert done.stdout.count(f"accuracy {metrics['accuracy']:.4f}, ") == done.stdout.count(f"{method}: ") == 1
    assert (metrics["steps"], metrics["test_size"]) == (16, 8)  # 32 texts for two, in batches of 4, 4 epochs
    assert metrics["accuracy"] == accuracy(tmp_path / method, load_data(str(reviews), None))
    trained, before = map(AutoModelForSequenceClassification.from_pretrained, (tmp_path / method, bert))
    assert any(not torch.equal(*pair) for pair in zip(trained.parameters(), before.parameters(), strict=True))


def gloo_threads():
    return [name for name in (each.read_text() for each in Path("/proc/self/task").glob("*/comm")) if "gloo" in name]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at the threads of a Linux process")
def test_no_thread_of_the_process_group_outlives_it():
    before = len(gloo_threads())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    cycle = {"model": DistributedDataParallel(nn.Linear(2, 2))}
    cycle["itself"] = cycle
    del cycle
    if len(gloo_threads()) == before:
        pytest.skip("this torch does not name its threads")
    launch.finish()
    assert len(gloo_threads()) == before
