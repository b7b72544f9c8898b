"""
What the page of the Chinese study says, in English and in Chinese.
"""

from __future__ import annotations

from study.train import PLAIN, WHOLE

ENGLISH = {
    "file": "results.md",
    "title": {"reviews": "# Results: Chinese reviews", "ner": "# Results: Chinese named entities"},
    "other": "[中文](results.zh-CN.md)",
    "model": {
        "reviews": "`CNNText` on the characters of {train_size} reviews (`chinese-reviews`)",
        "ner": "BiLSTM + CRF on the characters of {train_size} sentences (`peoples-daily`)",
    },
    "described": "{model}, from scratch: {epochs} epochs, batch size {batch_size}, learning rate {lr:g}, at most "
    "{max_length} characters; a row bears the name of the call that trained it: `FGM fraction=0.25 replace=True` is "
    "`FGMCallback(fraction=0.25, replace=True)`, and arguments that are not named have their defaults. {metric} on all "
    "test texts (clean) and on {attacked} of them: without an attack (0 edits), and after 1 or more characters are "
    "swapped with their neighbours or replaced by homophones. For each edit {candidates} are tried, and the one of "
    "the highest loss is kept. {versions}; {machine}, {cores} cores.",
    "values": "## {metric}\n\nIn %, mean ± standard deviation over seeds. The cost is the processor time of the "
    "training, one thread, in that of plain training.",
    "bases": {PLAIN: "plain training", WHOLE: "FGM"},
    "differences": "## Differences to {base}\n\nIn percentage points, paired by seed and text: the mean, and "
    "its 95 % bootstrap interval over seeds and {unit} together (clean: over seeds alone). Where that holds 0, these "
    "runs do not tell the method from {base}.",
    "able": "## What {count} {unit} can tell apart\n\nThe intervals above are ±{half:.1f} points wide in the median "
    "(of the columns under attack), and ±{most:.1f} at most. Smaller differences cannot be seen with so many {unit} "
    "and seeds. Over seeds alone, for exactly these {unit}, the median is ±{seeds:.1f}: the rest is which {unit} they "
    "are. With {comparisons} intervals, about {chance:.0f} would leave out 0 by chance if nothing helped.",
    "helps": "Better than plain training, beyond the interval: {names}.",
    "hurts": "Worse than plain training, beyond the interval: {names}.",
    "none": "none",
    "untried": "No edit could be tried on {count} of the {unit}; they count neither way.",
    "columns": ["method", "seeds", "clean", "0 edits", "cost"],
    "edits": {"swap": "swapped: {n}", "homophone": "homophones: {n}"},
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
    "每行的名字对应训练时的调用：`FGM fraction=0.25 replace=True` 即 "
    "`FGMCallback(fraction=0.25, replace=True)`，未写出的参数都用默认值。"
    "{metric}分别在全部测试数据上（干净）和其中 {attacked} 条上计算：不攻击（0 处改动），"
    "以及把一处或几处相邻的字对调、或换成同音字之后。每处改动试 {candidates} 个，留下损失最高的一个。{versions}；"
    "{machine}，{cores} 核。",
    "values": "## {metric}\n\n单位为 %，各种子的均值 ± 标准差。代价是训练所用的处理器时间"
    "（单线程），以普通训练为单位。",
    "bases": {PLAIN: "普通训练", WHOLE: " FGM "},
    "differences": "## 与{base}之差\n\n单位为百分点，按种子和{unit}配对：均值，以及对种子和{unit}一起自助抽样得到的 "
    "95 % 区间（“干净”一列只对种子）。区间包含 0 的，这些运行分不出该方法与{base}的差别。",
    "able": "## {count} 条{unit}能分辨什么\n\n上表中受攻击各列的区间，半宽的中位数为 {half:.1f} 个百分点，"
    "最大 {most:.1f}。更小的差别，用这么多{unit}和种子看不出来。"
    "若只对种子抽样（即只就这些{unit}而言），中位数为 {seeds:.1f}："
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
