"""Data and a model that take no time."""

import csv
import io
import itertools
import tarfile

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


def tar(files):
    """A tar.gz archive of ``{name: content}``, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def put_on_shelf(tmp_path, monkeypatch):
    """Put a small package of this name into the only folder where pip looks, and empty the cache."""

    def put(name, version, files):
        setup = f"from setuptools import setup; setup(name={name!r}, version={version!r}, packages=[])"
        metadata = {
            "setup.py": setup.encode(),
            "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        }
        folder = tmp_path / "shelf"
        folder.mkdir()
        archive = folder / f"{name}-{version}.tar.gz"
        archive.write_bytes(tar({f"{name}-{version}/{file}": text for file, text in {**metadata, **files}.items()}))
        for variable in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
        monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads this as "no build isolation"
        monkeypatch.setenv("FASTNLP_ADV_CACHE", str(tmp_path / "cache"))
        return archive

    return put


@pytest.fixture
def refused(capsys):
    """A function that runs a program with invalid arguments, and returns its last line, the error."""

    def run(main, words):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        told = capsys.readouterr().err
        assert ended.value.code == 2 and "Traceback" not in told
        return told.splitlines()[-1]

    return run


@pytest.fixture
def pack():
    """What makes an archive."""
    return tar


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
