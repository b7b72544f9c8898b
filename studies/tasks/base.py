"""
What a task tells the engine.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from data import Data, load_data
from datasets import concatenate_datasets

from studies.runs import Counts

#: by column the counts of each attacked text
Outcomes = dict[str, list[Counts]]


class Task:
    """
    Models and data of a study. Making one loads the data.

    :param args: the settings, and ``device``, ``models_dir``.
    """

    title: ClassVar[str]
    #: what the result of a run depends on: default and meaning
    settings: ClassVar[dict[str, tuple[Any, str]]]
    #: what a setting may be, where it is a choice
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: studied unless others are asked for
    methods: ClassVar[list[str]]
    #: several models in one study, by name and description
    models: ClassVar[dict[str, str]] = {"": ""}
    #: whether steps are timed; the cost is the time of whole trainings elsewhere
    timed: ClassVar[bool] = False
    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "texts"

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def run(self, model: str, method: str, seed: int) -> tuple[dict[str, float], Outcomes]:
        """
        Train, and attack.

        :return: ``clean``, ``learned`` and what else was measured, and the outcomes of the attacked texts.
        """
        raise NotImplementedError

    def step_seconds(self, method: str) -> float:
        """Measure the time of a training step."""
        raise NotImplementedError

    @staticmethod
    def columns(settings: dict) -> dict[str, str]:
        """Return what the tables show, and the heads of its columns."""
        raise NotImplementedError

    @staticmethod
    def headline(settings: dict) -> str | None:
        """Return the column that stands for robustness in the figures; ``None`` for no figures."""
        return None

    @staticmethod
    def described(settings: dict) -> str:
        """Say what was trained, on which data, and how it was attacked."""
        raise NotImplementedError


def learned(score: float, guess: float, count: int) -> int:
    """
    Tell whether a model has learned anything.

    :param score: its clean accuracy or F1.
    :param guess: what a constant prediction has.
    :param count: on how many texts.
    :return: 1 if it is better in a one-sided test at 5 %, 1.645 standard errors of an even guess; else 0.

    Example::

        >>> learned(0.53, guess=0.5, count=1000), learned(0.52, guess=0.5, count=1000)
        (1, 0)
    """
    return int(score > guess + 1.645 * 0.5 * count**-0.5)


def majority(labels: Sequence[int]) -> float:
    """Return the share of the most frequent label."""
    return max(Counter(labels).values()) / len(labels)


def load_part(dataset: str, train_size: int, test_size: int, split: str = "test") -> Data:
    """
    Load the texts of a study.

    :param dataset: see :func:`data.load_data`.
    :param train_size: how many texts to train on.
    :param test_size: how many texts to test on.
    :param split: ``"validation"`` for texts that are neither trained on nor reported, to choose arguments on.
    :return: the texts.
    :raises ValueError: there are no texts for the validation.
    """
    data = load_data(dataset)
    train, unused = _divided(data.train, train_size)
    test, others = _divided(data.test, test_size)
    if split == "validation":
        test, _ = _divided(concatenate_datasets([others, unused]), test_size)
        if not len(test):
            raise ValueError(f"Expected `--test-size` to leave texts for validation, but got {test_size}.")
    return replace(data, train=train, test=test)


def _divided(part: Any, size: int) -> tuple[Any, Any]:
    rows = [*range(len(part))]  # a list may be empty, unlike a range at the end
    return part.select(rows[:size]), part.select(rows[size:])
