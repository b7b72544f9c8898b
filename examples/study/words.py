"""
What the page of the study says, in English and in Chinese.
"""

from __future__ import annotations

from study.train import PLAIN, WHOLE

ENGLISH = {
    "file": "results.md",
    "title": "# Results",
    "other": "[中文](results.zh-CN.md)",
    "described": "`{model}` on {train_size} texts of `{dataset}`, {epochs} epochs, batch size {batch_size}, learning "
    "rate {lr:g}, at most {max_length} tokens; a row bears the name of the call that trained it: `FGM fraction=0.25 "
    "replace=True` is `FGMCallback(fraction=0.25, replace=True)`, and arguments that are not named have their "
    "defaults. Clean accuracy is over {test_size} test texts, that under attack over the first {attack_size}. ε is the "
    "radius (l2, a text) of an attack on the word vectors, in units of their mean norm: {attack_steps} steps from "
    "each of {restarts} starts. HotFlip may swap {max_flips} words, typos may be in {max_typos}. {versions}; "
    "{machine}, {cores} cores{gpu}.",
    "values": "## Accuracy\n\nIn %, mean ± standard deviation over seeds: of the clean test texts, and of what is left "
    "of those attacked. The cost is the time of a training step in plain steps: the median of rounds in which all "
    "methods took turns.",
    "columns": ["method", "seeds", "cost"],
    "clean": "clean",
    "hotflip": "{n} flip{s}",
    "typos": "{n} typo{s}",
    "differences": "## Differences to {base}\n\nIn percentage points, paired by {pairs}: the mean, and its 95 % "
    "bootstrap interval over {drawn}. Where that holds 0, these runs do not tell the method from {base}.",
    "over seeds": {"pairs": "seed", "drawn": "seeds"},
    "over texts": {"pairs": "seed and text", "drawn": "seeds and texts together (clean: over seeds alone)"},
    "bases": {PLAIN: "plain training", WHOLE: "FGM"},
    "interval": "({low:+.1f} to {high:+.1f})",
    "figures": "## Figures",
}
CHINESE = {
    "file": "results.zh-CN.md",
    "title": "# 结果",
    "other": "[English](results.md)",
    "described": "`{model}`，在 `{dataset}` 的 {train_size} 条文本上训练 {epochs} 轮，批大小 {batch_size}，"
    "学习率 {lr:g}，每条最多 {max_length} 个 token。"
    "每行的名字对应训练时的调用：`FGM fraction=0.25 replace=True` 即 "
    "`FGMCallback(fraction=0.25, replace=True)`，未写出的参数都用默认值。"
    "干净准确率在 {test_size} 条测试文本上计算，受攻击时的准确率在其中前 {attack_size} 条上计算。"
    "ε 是攻击词向量的半径（l2，每条文本一个），以词向量的平均长度为单位：{restarts} 个起点，各走 {attack_steps} 步。"
    "HotFlip 最多换 {max_flips} 个词，错别字最多出现在 {max_typos} 个词里。{versions}；{machine}，{cores} 核{gpu}。",
    "values": "## 准确率\n\n单位为 %，各种子的均值 ± 标准差：干净测试文本上的，以及受攻击后剩下的。"
    "代价是训练一步的用时，以普通一步为单位：各方法轮流计时若干轮，取其中位数。",
    "columns": ["方法", "种子数", "代价"],
    "clean": "干净",
    "hotflip": "换词 {n} 处",
    "typos": "错别字 {n} 处",
    "differences": "## 与{base}之差\n\n单位为百分点，按{pairs}配对：均值，以及{drawn}得到的 95 % 区间。"
    "区间包含 0 的，这些运行分不出该方法与{base}的差别。",
    "over seeds": {"pairs": "种子", "drawn": "对种子自助抽样"},
    "over texts": {"pairs": "种子和文本", "drawn": "对种子和文本一起自助抽样（“干净”一列只对种子）"},
    "bases": {PLAIN: "普通训练", WHOLE: " FGM "},
    "interval": "({low:+.1f} – {high:+.1f})",
    "figures": "## 图",
}
