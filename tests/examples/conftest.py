"""Data and a model that take no time."""

import csv
import itertools

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

WORDS = ["the", "film", "plot", "cast", "is", "was", "good", "bad", "fine", "poor", "really", "so"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """40 different reviews, which are good when they say "good" or "fine"."""
    texts = [f"the {a} {b} {c} {d}" for a, b, c, d in itertools.product(*(WORDS[i : i + 2] for i in (2, 4, 10, 6)))]
    texts += [f"really {text}" for text in texts] + [f"{text} film" for text in texts[:8]]
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "good" in text.split()) for text in texts)])
    assert len(set(texts)) == 40
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a small BERT and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder)
    return folder
