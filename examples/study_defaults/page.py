"""
The results of the study of defaults as a page in English and in Chinese.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from study.runs import VERSIONS, Runs, interval, spread
from study.train import PLAIN

from tools.table import Table

#: a loss that has fallen by less is that of a model that has learned nothing but the share of each label
LEAST_FALL = 0.02

ENGLISH = {
    "file": "results.md",
    "head": "# With which defaults does FGM learn?\n\n[中文](results.zh-CN.md)\n\nFour models are trained on texts of "
    "`{dataset}`, plainly and with FGM: the row `FGM` is `FGMCallback(epsilon=1.0)`, and a row such as `FGM "
    "warmup=1.0` is `FGMCallback(epsilon=1.0, warmup=1.0)`. Clean accuracy is that of the test texts. Robust "
    "accuracy is what is left of the first of them under an attack on the word vectors, ε = {radius:g} rows, "
    "{attack_steps} steps from one start. {versions}; one thread of a CPU.",
    "columns": ["method", "seeds", "learned", "clean", "robust", "clean, difference", "robust, difference"],
    "cells": "In %, mean ± standard deviation over seeds. Differences to plain training are paired by seed: the mean "
    "and, from two seeds on, its 95 % bootstrap interval. *Learned* counts the trainings whose clean loss fell by 2 % "
    "at least from the first tenth to the last. A model that has learned nothing is never fooled: its robust accuracy "
    "says nothing.",
    "tasks": {
        "bilstm": "BiLSTM from scratch",
        "cnn": "fastNLP's `CNNText` from scratch",
        "minilm-2e-4": "MiniLM, learning rate 2e-4",
        "minilm-1e-4": "MiniLM, learning rate 1e-4",
    },
    "settings": "{train_size} texts, number of epochs {epochs}, batch size {batch_size}, learning rate {lr:g}: {steps} "
    "steps. {test_size} test texts, of which {attack_size} are attacked.",
}
CHINESE = {
    "file": "results.zh-CN.md",
    "head": "# FGM 用什么默认值才学得会？\n\n[English](results.md)\n\n"
    "在 `{dataset}` 的文本上训练四个模型：普通训练和 FGM。`FGM` 一行是 `FGMCallback(epsilon=1.0)`，"
    "`FGM warmup=1.0` 这样的一行是 `FGMCallback(epsilon=1.0, warmup=1.0)`。"
    "干净准确率在测试文本上计算。鲁棒准确率是其中前若干条的词向量受攻击后剩下的准确率："
    "ε = {radius:g} 行长，从一个起点走 {attack_steps} 步。{versions}；CPU 单线程。",
    "columns": ["方法", "种子数", "学会", "干净", "鲁棒", "干净，差", "鲁棒，差"],
    "cells": "单位为 %，是各种子的均值 ± 标准差。与普通训练之差按种子配对：均值；有两个以上种子时，"
    "附 95 % 自助法区间。“学会”是干净损失从最初十分之一到最后十分之一至少下降 2 % 的训练数。"
    "什么也没学到的模型是骗不了的，它的鲁棒准确率没有意义。",
    "tasks": {
        "bilstm": "从头训练的 BiLSTM",
        "cnn": "从头训练的 fastNLP `CNNText`",
        "minilm-2e-4": "MiniLM，学习率 2e-4",
        "minilm-1e-4": "MiniLM，学习率 1e-4",
    },
    "settings": "{train_size} 条文本，{epochs} 轮，批大小 {batch_size}，学习率 {lr:g}：{steps} 步。"
    "测试文本 {test_size} 条，其中 {attack_size} 条受攻击。",
}


def write(found: dict[str, Runs], folder: Path, command: str) -> None:
    """
    Write the page in both languages.

    :param found: the runs of each model.
    :param folder: where to.
    :param command: how the study was started.
    """
    for words in (ENGLISH, CHINESE):
        (folder / words["file"]).write_text(page(found, command, words), encoding="utf-8")


def page(found: dict[str, Runs], command: str, words: dict) -> str:
    """
    :param found: the runs of each model.
    :param command: how the study was started.
    :param words: those of the language.
    :return: the page.
    """
    settings = [runs.settings for runs in found.values()]
    filled = {
        **settings[0],
        "versions": ", ".join(f"{name} {settings[0][name]}" for name in VERSIONS),
    }
    parts = [words["head"].format(**filled), f"```shell\n{command}\n```", words["cells"]]
    for name, runs in found.items():
        if runs.rows:
            steps = next(iter(runs.rows.values()))["steps"]
            rows = [_row(runs, method) for method in runs.methods]
            parts += [f"## {words['tasks'][name]}", words["settings"].format(**runs.settings, steps=steps)]
            parts += [Table(words["columns"], rows).markdown()]
    return "\n\n".join(parts) + "\n"


def _row(runs: Runs, method: str) -> list[str]:
    first, last = (runs.values(method, name) for name in ("first_loss", "last_loss"))
    learned = sum(last[seed] < (1 - LEAST_FALL) * first[seed] for seed in first)
    values = [[100 * each for each in runs.values(method, column).values()] for column in ("clean", "robust")]
    cells = [f"{np.mean(each):.1f}" + (f" ± {spread(each):.1f}" if len(each) > 1 else "") for each in values]
    gaps = [[100 * each for each in runs.differences(method, column)] for column in ("clean", "robust")]
    return [method, str(len(first)), f"{learned}/{len(first)}", *cells, *(_gap(method, each) for each in gaps)]


def _gap(method: str, differences: list[float]) -> str:
    if method == PLAIN or not differences:
        return ""
    mean = f"{np.mean(differences):+.1f}"
    return mean + (" ({:+.1f} – {:+.1f})".format(*interval(differences)) if len(differences) > 1 else "")
