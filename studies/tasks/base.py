"""
The interface of a task to the engine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import report
from data import Data, load_data
from datasets import concatenate_datasets
from fastNLP import Callback, Trainer
from fastNLP.io import DataBundle

from studies.runs import Counts

TIMED_STEPS = 8  # a multiple of 4, for `every=4`
#: by column the counts of each attacked text
Outcomes = dict[str, list[Counts]]


class Task(ABC):
    """
    Models and data of a study. Making one loads the data.

    :param args: the settings, and ``device``, ``models_dir``.
    """

    title: ClassVar[str]
    #: settings of a run: default and meaning
    settings: ClassVar[dict[str, tuple[Any, str]]]
    #: the values of a setting that is a choice
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    #: studied unless others are asked for
    methods: ClassVar[list[str]]
    #: several models in one study, by name and description
    models: ClassVar[dict[str, str]] = {"": ""}
    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "texts"

    def __init__(self, args: argparse.Namespace):
        self.args = args

    @abstractmethod
    def run(self, model: str, method: str, seed: int) -> tuple[dict[str, float], Outcomes]:
        """
        Train, and attack.

        :return: ``clean``, ``learned`` and other results, and the outcomes of the attacked texts.
        """

    @staticmethod
    @abstractmethod
    def columns(settings: dict) -> dict[str, str]:
        """Return the columns of the tables, and their heads."""

    @staticmethod
    def headline(settings: dict) -> str | None:
        """Return the column that stands for robustness in the figures; ``None`` for no figures."""
        return None

    @staticmethod
    @abstractmethod
    def described(settings: dict) -> str:
        """Describe the training, the data and the attacks."""


class TimedTask(Task):
    """A task whose steps are timed, for the cost of each method."""

    @abstractmethod
    def trainer(self, method: str, args: argparse.Namespace, *callbacks: Callback, size: int | None = None) -> Trainer:
        """Build a training with the method's callbacks and others; on so many of the texts, if given."""

    def step_seconds(self, method: str) -> float:
        """Time a step, in processor time on a CPU: the mean of a second epoch, since ATTA's first one is plain."""
        on_cpu = self.args.device == "cpu"
        timer = report.StepTimer(self.args.device, time.process_time if on_cpu else time.perf_counter)
        args = argparse.Namespace(**{**vars(self.args), "epochs": 2, "seed": 0})
        self.trainer(method, args, timer, size=TIMED_STEPS * args.batch_size).run(catch_KeyboardInterrupt=False)
        return statistics.mean(timer.seconds[len(timer.seconds) // 2 :])


def learned(score: float, guess: float, count: int) -> int:
    """
    Return 1 if a clean accuracy or F1 on so many texts is better than a constant prediction, else 0: in a one-sided
    test at 5 %, 1.645 standard errors of an even guess.
    """
    return int(score > guess + 1.645 * 0.5 * count**-0.5)


def first(bundle: DataBundle, size: int | None) -> DataBundle:
    """Return the first texts for the training, and one for the test; all with ``None``."""
    if size is None:
        return bundle
    return DataBundle(datasets={"train": bundle.get_dataset("train")[:size], "test": bundle.get_dataset("test")[:1]})


def majority(labels: Sequence[int]) -> float:
    """Return the share of the most frequent label."""
    return max(Counter(labels).values()) / len(labels)


def load_part(dataset: str, train_size: int, test_size: int, split: str = "test") -> Data:
    """Load texts; ``"validation"`` tests on others, neither trained on nor reported, to choose arguments on."""
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
