"""
Texts and labels to train on: movie review snippets, Chinese reviews, a data set of the Hugging Face hub, or a local CSV
or TSV file.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import chinese_data
import hub
import snippets
from datasets import Dataset, DatasetDict, load_dataset

DEFAULT = "snippets"
CHINESE, TAGGED = "chinese-reviews", "peoples-daily"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TEXT_COLUMNS = ("text", "sentence", "content")
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Data:
    """
    :param train: a data set with the columns ``text`` and ``label``, labels being 0, 1, ...
    :param test: the same, to evaluate on.
    :param num_labels: the number of labels.
    :param source: a description of the source of the data.
    """

    train: Dataset
    test: Dataset
    num_labels: int
    source: str


def load_data(name: str = DEFAULT, train_size: int | None = None) -> Data:
    """
    Load data by name.

    Rows are ordered by a hash of their text, which mixes sorted files and gives the same rows on every machine. Without
    a test split, the first fifth of the texts is held out; equal texts are always in the same split.

    :param name: ``"snippets"``, ``"chinese-reviews"``, the path of a CSV or TSV file with the columns ``text`` and
        ``label``, or a data set on the hub: ``"glue/sst2"``, ``"imdb"``, ``"owner/name"``,
        ``"owner/name:configuration"``.
    :param train_size: number of rows to train on; ``None`` for all.
    :return: the data.
    :raises ValueError: columns or labels are missing. This message and the next two are one line each.
    :raises FileNotFoundError: the file does not exist.
    :raises ConnectionError: the hub or the package index cannot be accessed.
    """
    if name == DEFAULT:
        data = _held_out(*snippets.load_snippets(), source="movie review snippets")
    elif name == CHINESE:
        data = _held_out(*chinese_data.load_reviews(), source="Chinese reviews")
    elif name == TAGGED:
        raise ValueError(
            f"Expected `--dataset` to have a label for each text, but {TAGGED} has tags: see chinese_ner.py."
        )
    elif Path(name).suffix.lower() in DELIMITERS:
        data = _held_out(*read_table(Path(name)), source=name)
    else:
        data = _from_hub(name)
    rows = data.train if train_size is None else data.train.select(range(min(train_size, len(data.train))))
    return Data(rows, data.test, data.num_labels, data.source)


def read_table(path: Path) -> tuple[list[str], list[str]]:
    """
    :param path: a CSV or TSV file in UTF-8; its first line names the columns.
    :return: the columns ``text`` and ``label``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected `--dataset` to be a file, but there is no file {path}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
            columns = list(table.fieldnames or [])
            rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected {path} to be a table in UTF-8, but got: {error}.") from error
    missing = [column for column in ("text", "label") if column not in columns]
    if missing:
        raise ValueError(f"Expected {path} to have the columns `text` and `label`, but got {columns}.")
    for number, row in enumerate(rows, start=1):
        if not row["text"] or not row["label"]:
            raise ValueError(f"Expected every row of {path} to have a text and a label, but row {number} has not.")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def text_hash(text: str) -> str:
    """
    :param text: a text.
    :return: a hash that ignores case and blanks.
    """
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()


def _held_out(texts: list[str], labels: list[str], source: str) -> Data:
    hashes = sorted({text_hash(text) for text in texts})
    if len(hashes) < 5:
        raise ValueError(f"Expected {source} to have 5 different texts at least, but got {len(hashes)}.")
    last_of_test = hashes[max(1, round(TEST_SHARE * len(hashes))) - 1]
    rows = _by_hash(texts, labels)
    test = [row for row in rows if text_hash(row[0]) <= last_of_test]
    return _encode(rows[len(test) :], test, f"{source}, {len(test)} held out")


def _by_hash(texts: list[str], labels: list) -> list[tuple]:
    return sorted(zip(texts, labels, strict=True), key=lambda row: text_hash(row[0]))


def _encode(train: list[tuple], test: list[tuple], source: str) -> Data:
    names = sorted({label for _, label in train + test}, key=str)
    if len(names) < 2 or any(isinstance(name, float) for name in names):
        raise ValueError(f"Expected {source} to have two or more classes as labels, but got {names[:5]}.")
    parts = (
        Dataset.from_dict({"text": [text for text, _ in rows], "label": [names.index(label) for _, label in rows]})
        for rows in (train, test)
    )
    return Data(*parts, num_labels=len(names), source=source)


def _from_hub(name: str) -> Data:
    splits = _download(name)
    columns = splits["train"].column_names if "train" in splits else []
    text = next((column for column in TEXT_COLUMNS if column in columns), None)
    if text is None or "label" not in columns:
        raise ValueError(
            f"Expected {name} to have a train split with the columns `text` (or `sentence`, `content`) and `label`, "
            f"but got the splits {list(splits)} and the columns {columns}."
        )
    test = next((split for split in ("test", "validation") if _has_labels(splits, split)), None)
    if test is None:
        raise ValueError(f"Expected {name} to have a labelled test or validation split, but got {list(splits)}.")
    train, held_out = (_by_hash(splits[split][text], splits[split]["label"]) for split in ("train", test))
    return _encode(train, held_out, f"{name}, evaluated on its {test} split")


def _download(name: str) -> DatasetDict:
    path, _, configuration = name.partition(":")
    if path.startswith("glue/"):
        path, _, configuration = path.partition("/")
    # A folder of that name comes before the hub, as in load_dataset.
    is_offline = not Path(path).is_dir() and hub.offline()
    try:
        return load_dataset(path, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        if is_offline:
            raise ConnectionError(
                f"The Hugging Face hub cannot be reached, so `--dataset {name}` cannot be loaded; "
                f"`--dataset {DEFAULT}`, the default, needs no hub."
            ) from error
        raise ValueError(f"Cannot load `--dataset {name}`: {' '.join(str(error).split())}") from error


def _has_labels(splits: DatasetDict, split: str) -> bool:
    # GLUE hides the labels of its test splits behind -1.
    return split in splits and "label" in splits[split].column_names and -1 not in splits[split]["label"]
