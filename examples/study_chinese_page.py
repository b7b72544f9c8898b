"""
The results of the Chinese study as a page in English and in Chinese: what was run, what came out, how sure that is, and
what so many texts cannot tell apart.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
from study_chinese_attack import SLIPS
from study_page import markdown
from study_table import VERSIONS, Table, interval, spread
from study_train import PLAIN

RESAMPLES = 10_000

#: the sentences of the page, in each language
ENGLISH = {
    "file": "results.md",
    "title": {"reviews": "# Results: Chinese reviews", "ner": "# Results: Chinese named entities"},
    "other": "[中文](results.zh-CN.md)",
    "model": {
        "reviews": "`CNNText` on the characters of {train_size} reviews (`chinese-reviews`)",
        "ner": "BiLSTM + CRF on the characters of {train_size} sentences (`peoples-daily`)",
    },
    "described": "{model}, from scratch: {epochs} epochs, batch size {batch_size}, learning rate {lr:g}, at most "
    "{max_length} characters; methods are at their defaults where no arguments stand behind them. {metric} on all test "
    "texts (clean) and on {attacked} of them: without an attack (0 edits), and after 1 or more characters are swapped "
    "with their neighbours or replaced by homophones. For each edit {candidates} are tried, and the one of the highest "
    "loss is kept. {versions}; {machine}, {cores} cores.",
    "values": "## {metric}\n\nIn %, mean ± standard deviation over seeds. The cost is the median time of a training "
    "step in plain steps; runs took turns on a machine that was not idle, so take it as rough.",
    "differences": "## Differences to plain training\n\nIn percentage points, paired by seed and text: the mean, and "
    "its 95 % bootstrap interval over seeds and {unit} together (clean: over seeds alone). Where that holds 0, these "
    "runs do not tell the method from plain training.",
    "able": "## What {count} {unit} can tell apart\n\nThe intervals above are ±{half:.1f} points wide in the median "
    "(of the columns under attack), and ±{most:.1f} at most. Smaller differences cannot be seen with so many {unit} "
    "and seeds. Over seeds alone, for exactly these {unit}, the median is ±{seeds:.1f}: the rest is which {unit} they "
    "are. With {comparisons} intervals, about {chance:.0f} would leave out 0 by chance if nothing helped.",
    "helps": "Better than plain training, beyond the interval: {names}.",
    "hurts": "Worse than plain training, beyond the interval: {names}.",
    "none": "none",
    "untried": "No edit could be tried on {count} of the {unit}; they count neither way.",
    "columns": ["method", "seeds", "clean", "0 edits", "cost"],
    "edits": {"swap": "{n} swapped", "homophone": "{n} homophones"},
    "metric": {"accuracy": "Accuracy", "F1": "F1"},
    "unit": {"texts": "texts", "sentences": "sentences"},
}
CHINESE = {
    "file": "results.zh-CN.md",
    "title": {"reviews": "# 结果：中文评论", "ner": "# 结果：中文命名实体"},
    "other": "[English](results.md)",
    "model": {
        "reviews": "`CNNText`，以字为单位，{train_size} 条评论（`chinese-reviews`）",
        "ner": "BiLSTM + CRF，以字为单位，{train_size} 个句子（`peoples-daily`）",
    },
    "described": "{model}，从头训练：{epochs} 轮，批大小 {batch_size}，学习率 {lr:g}，每条最多 {max_length} 字；"
    "未注明参数的方法都用默认值。{metric}分别在全部测试数据上（干净）和其中 {attacked} 条上计算：不攻击（0 处改动），"
    "以及把一处或几处相邻的字对调、或换成同音字之后。每处改动试 {candidates} 个，留下损失最高的一个。{versions}；"
    "{machine}，{cores} 核。",
    "values": "## {metric}\n\n单位为 %，各种子的均值 ± 标准差。代价是训练一步用时的中位数，以普通训练的一步为单位；"
    "测量时机器并不空闲，仅供参考。",
    "differences": "## 与普通训练之差\n\n单位为百分点，按种子和{unit}配对：均值，以及对种子和{unit}一起自助抽样得到的 "
    "95 % 区间（“干净”一列只对种子）。区间包含 0 的，这些运行分不出该方法与普通训练。",
    "able": "## {count} 条{unit}能分辨什么\n\n上表中受攻击各列的区间，半宽的中位数为 {half:.1f} 个百分点，最大 {most:.1f}。"
    "更小的差别，用这么多{unit}和种子看不出来。若只对种子抽样（即只就这些{unit}而言），中位数为 {seeds:.1f}："
    "其余来自选了哪些{unit}。共有 {comparisons} 个区间，即使什么都没有用，也会有约 {chance:.0f} 个碰巧不包含 0。",
    "helps": "超出区间、好于普通训练的：{names}。",
    "hurts": "超出区间、差于普通训练的：{names}。",
    "none": "无",
    "untried": "有 {count} 条{unit}一处改动也试不了，两边都不计。",
    "columns": ["方法", "种子数", "干净", "0 处", "代价"],
    "edits": {"swap": "对调 {n} 处", "homophone": "同音字 {n} 处"},
    "metric": {"accuracy": "准确率", "F1": "F1"},
    "unit": {"texts": "文本", "sentences": "句子"},
}


def outcome_file(folder: Path, method: str, seed: int) -> Path:
    """
    :param folder: of the study.
    :param method: a method.
    :param seed: a seed.
    :return: where it is written what became of each text.
    """
    return folder / "outcomes" / f"{method.lower().replace(' ', '')}-{seed}.json"


def share(counts: list) -> float:
    """
    :param counts: what is right in each text, and how much it is to be compared with; ``None`` for what does not count.
    :return: the accuracy or the F1.

    Example::

        >>> share([[1.0, 1.0], [0.0, 1.0], None])
        0.5
    """
    kept = [each for each in counts if each is not None]
    total = sum(whole for _, whole in kept)
    return sum(right for right, _ in kept) / total if total else float("nan")


def write(table: Table, task, command: str) -> None:
    """
    Write the page in both languages.

    :param table: the runs; it knows the folder.
    :param task: what was trained.
    :param command: how the study was started.
    """
    for words in (ENGLISH, CHINESE):
        (table.folder / words["file"]).write_text(_page(table, task, command, words), encoding="utf-8")


def _page(table: Table, task, command: str, words: dict) -> str:
    settings = table.settings
    unit, metric = words["unit"][task.unit], words["metric"][task.metric]
    attacked = [f"{slip}_{n}" for slip in SLIPS for n in range(1, settings["edits"] + 1)]
    columns = ["clean", "attacked_0", *attacked]
    method, seeds, clean, none, cost = words["columns"]
    heads = [clean, none, *(words["edits"][name.split("_")[0]].format(n=name[-1]) for name in attacked)]
    others = [name for name in table.methods if name != PLAIN and table.differences(name, "clean")]
    found = {name: {column: difference(table, name, column) for column in columns} for name in others}
    filled = {
        **settings,
        "model": words["model"][settings["task"]].format(**settings),
        "metric": metric,
        "attacked": len(task.texts),
        "versions": ", ".join(f"{name} {settings[name]}" for name in VERSIONS[:2]),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    parts = [
        words["title"][settings["task"]],
        words["other"],
        words["described"].format(**filled),
        f"```shell\n{command}\n```",
        words["values"].format(metric=metric),
        markdown([method, seeds, *heads, cost], [_values(table, name, columns) for name in table.methods]),
    ]
    untried = max((row["not_attacked"] for row in table.rows.values()), default=0)
    if untried:
        parts.append(words["untried"].format(count=untried, unit=unit))
    if found:
        rows = [[name, *(_cell(cells[column]) for column in columns)] for name, cells in found.items()]
        parts += [words["differences"].format(unit=unit), markdown([method, *heads], rows)]
        parts += [_verdict(found, columns, heads, words, sign) for sign in (1, -1)]
        widths = [(high - low) / 2 for cells in found.values() for _, low, high in (cells[name] for name in attacked)]
        alone = [
            (high - low) / 2
            for name in others
            for low, high in (interval([100 * each for each in table.differences(name, column)]) for column in attacked)
        ]
        sizes = {"half": np.median(widths), "most": max(widths), "seeds": np.median(alone)}
        intervals = len(others) * len(columns)
        sizes.update(comparisons=intervals, chance=0.05 * intervals)
        parts.append(words["able"].format(count=len(task.texts), unit=unit, **sizes))
    return "\n\n".join(parts) + "\n"


def difference(table: Table, method: str, column: str) -> tuple[float, float, float]:
    """
    :param table: the runs.
    :param method: a method.
    :param column: what was measured.
    :return: how much more it is than under plain training, in percentage points, and the ends of the 95 % interval:
        over seeds and texts where it is known for each text, over seeds elsewhere.
    """
    plain, own = table.values(PLAIN, column), table.values(method, column)
    seeds = sorted(plain.keys() & own.keys())
    mean = 100 * float(np.mean(table.differences(method, column)))
    if column == "clean":
        return (mean, *interval([100 * each for each in table.differences(method, column)]))
    generator = np.random.default_rng(0)
    counts = {name: np.array([_counts(table.folder, name, seed, column) for seed in seeds]) for name in (PLAIN, method)}
    texts = counts[PLAIN].shape[1]
    of_texts = generator.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES).astype(float)
    of_seeds = generator.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    drawn = {name: (of_texts @ each[..., 0].T) / (of_texts @ each[..., 1].T) for name, each in counts.items()}
    gaps = 100 * ((drawn[method] - drawn[PLAIN]) * of_seeds).sum(1) / len(seeds)
    low, high = np.quantile(gaps, [0.025, 0.975])
    return mean, float(low), float(high)


def _counts(folder: Path, method: str, seed: int, column: str) -> list:
    counts = json.loads(outcome_file(folder, method, seed).read_text(encoding="utf-8"))[column]
    return [[0.0, 0.0] if each is None else each for each in counts]


def _values(table: Table, method: str, columns: list[str]) -> list[str]:
    """The row of a method in the first table."""
    found = [[100 * each for each in table.values(method, column).values()] for column in columns]
    cells = [f"{np.mean(each):.1f}" + (f" ± {spread(each):.1f}" if len(each) > 1 else "") for each in found]
    seconds, plain = (list(table.values(name, "step_seconds").values()) for name in (method, PLAIN))
    cost = f"{np.median(seconds) / np.median(plain):.2f}" if plain else ""
    return [method, str(len(found[0])), *cells, cost]


def _cell(found: tuple[float, float, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*found).replace(" to ", " – ")


def _verdict(found: dict, columns: list[str], heads: list[str], words: dict, sign: int) -> str:
    """Which methods are apart from plain training to one side, and where."""
    named = []
    for name, cells in found.items():
        where = [
            head for column, head in zip(columns, heads) if (cells[column][1] > 0 if sign > 0 else cells[column][2] < 0)
        ]
        if where:
            named.append(f"{name} ({', '.join(where)})")
    return words["helps" if sign > 0 else "hurts"].format(names="; ".join(named) or words["none"])
