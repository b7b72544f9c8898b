"""What the page says, in Chinese."""

from __future__ import annotations

from typing import Any

TEXTBOOK = "教科书写法的每一遍都完整地跑，因此它自己的极限更高：PGD-K 为 K + 1。"
FEW = "只用 {layers} 层，好让最大的设置也只要几分钟，而不是几小时。"

CHINESE: dict[str, Any] = {
    "file": "README.zh-CN.md",
    "introduction": """\
# 代价有多大

[English](README.md)

本页由 `python -m benchmarks` 根据同目录下的 JSON 文件生成，请勿手工修改。
`python -m benchmarks --render` 不重新测量，只重新生成页面和图（图中文字为英文）。

同一设置下的各种做法在 fastNLP 的 Trainer 中、用同一个模型和同一个 batch 轮流跑，一轮里各跑一步。
用时以同一轮的普通步为单位：给出比值的中位数，括号内为四分位数。**普通步**包括前向、反向、优化器更新（SGD）和梯度清零。

**极限**是按所跑的各遍计算，一步至少要付出的代价：一次前向记为 1/3，一次完整的反向记为 2/3，到词向量为止的反向记为 1/3。
这里只计前向和反向，每步只做一次的事（优化器更新、梯度清零）不计在内，因此实测的比值可能低于极限。

**教科书写法**按定义写成：克隆词向量矩阵，把扰动写进去，再把克隆放回；
PGD 还要克隆并恢复所有梯度；R-Drop 分开跑两次前向。
""",
    "measured": "测量环境：{machine}；{versions}。\n",
    # records say it in English
    "machine": {
        r" CPU cores \((.*?)\)": r" 个 CPU 核（\1）",
        r" CPU cores": " 个 CPU 核",
        r", (\d+) threads?, (\d+) GiB of memory": r"，\1 个线程，\2 GiB 内存",
        "; ": "；",
    },
    "comma": "，",
    "numbers": "、",
    "spread": "{1}（{0} 到 {2}）",
    "rounds": "{count} 轮",
    "label": "{batch} x {length} 个 token，词表 {vocab:,}，{layers} 层、宽 {hidden}",
    "labelled": "{label}（{rounds}）",
    "detail": "{label}；{rounds}",
    "sentence": "{}。",
    "same": "各行相同的设置：{settings}。",
    "settings": {"batch": "batch 大小", "length": "长度", "vocab": "词表", "hidden": "宽度", "layers": "层数"},
    "made": "*{date}，`{command}`。*",
    "variant": {
        "plain": "普通训练",
        "textbook": "教科书写法",
        "by hand": "手写",
        "not due": "不起作用时",
        "inner bfloat16": "内层 bfloat16",
    },
    "targets": {
        "title": "目标",
        "columns": ["目标", "实测", ""],
        True: "达到",
        False: "未达到",
        "at most": "{variant}：不超过 {most} 个普通步",
        "by hand": "{own}；手写 {hand}",
        "faster": "{variant}：速度至少是教科书写法的 {least} 倍",
        "memory": "{variant}：内存比普通步多占不到 {most} MiB",
        "memory measured": "{own:.0f} MiB（教科书写法：{book:.0f} MiB）",
        "vocabulary": "{variant}：词表由 {small} 增大到 {large}，代价不增加（容许 10 % 的噪声）",
        "vocabulary measured": "{small:.2f} 和 {large:.2f} 个普通步",
        "overhead": "{variant}：开销低于普通步的 1 %",
        "overhead measured": "{percent}%，{microseconds} µs",
        "rdrop": "R-Drop：batch 较小时 `concat` 比跑两遍快",
        "rdrop measured": "{label} 时速度是跑两遍的 {faster}倍；{where}",
        "reductions": "每个优化步只归约一次梯度",
        "reductions measured": "{most:g} 次，共 {ways} 种训练方式",
    },
    "where": {
        "nowhere": "各种大小下都不更快",
        "everywhere": "各种大小下都更快",
        "up to": "不超过 {tokens} 个 token 时更快",
        "from": "不少于 {tokens} 个 token 时更快",
        "at": "{tokens} 个 token 时更快",
    },
    "columns": {
        "time": ["", "每步用时（秒）", "折合普通步数", "极限"],
        "precision": ["每次上升与 float32 的余弦"],
        "memory": ["", "各次运行的峰值（MiB）", "增加（MiB）"],
        "reductions": ["每个优化步", "归约次数", "all-reduce 调用次数", "每个进程发送（MiB）"],
        "overhead": ["回调", "每步开销（微秒）", "占普通步的 %"],
    },
    "plain step": "普通步：{label}；{rounds}",
    "title": {
        "methods": "各方法的一步与教科书写法",
        "overhead": "回调自身的开销",
        "memory": "比普通步多占的内存",
        "vocabulary": "词表大小",
        "hidden": "模型宽度",
        "tokens": "batch 大小",
        "steps": "内层步数",
        "rdrop": "R-Drop：加倍的 batch 跑一遍，还是跑两遍",
        "every": "本包的每个方法",
        "fraction": "只攻击一部分样本",
        "precision": "内层以较低精度运行",
        "reductions": "分布式训练发送多少数据",
    },
    "axis": {
        "vocabulary": "词表大小",
        "hidden": "宽度",
        "tokens": "batch 的 token 数",
        "steps": "内层步数 K",
        "rdrop": "batch 的 token 数",
    },
    "note": {
        "methods": TEXTBOOK,
        "overhead": "与专为一个模型手写、各遍相同、同样在 Trainer 中运行的循环相比，回调多花的时间；"
        "对不起作用的回调，则与普通训练相比。先在一个几乎不做计算、查表却与真实模型一样大的模型上测量，"
        "微秒级的差别在那里才看得出来；再与真实模型的普通步相比。括号内为中位数的 95 % 置信区间。",
        "memory": "三步之内的峰值（{peak}），每次运行用一个单独的进程。",
        "vocabulary": "只计前向和反向，不含优化器更新和梯度清零。普通步里有任何训练都免不了的开销："
        "填充词向量的稠密梯度，再加到 `.grad` 上（fastNLP 原地清零梯度）。训练两遍就做两次，PGD 的内层各遍从不做，"
        "因此 PGD 的比值可能下降。宽度只取 {hidden}，因为词表为一百万时教科书写法的 PGD 要占很多内存。",
        "hidden": FEW,
        "tokens": FEW,
        "steps": f"{TEXTBOOK}{FEW}",
        "rdrop": FEW,
        "every": '参数都用默认值；`attn_implementation="eager"` 是梯度惩罚所需要的。极限按遍数计算；'
        "梯度惩罚的第二次反向还要穿过第一次反向，因此达不到极限。",
        "fraction": "`fraction`：攻击所需的各遍只跑这么大比例的样本，另有一遍跑全部样本。"
        "手写：不用本项目，用纯 torch 在 `inputs_embeds` 上跑同样的几遍。"
        "它也达不到极限：样本少时，一遍的用时高于按样本数分摊的用时。",
        "precision": "`inner_autocast=torch.bfloat16`。余弦是每次上升之后的扰动与 float32 下的扰动之间的余弦，"
        "模型的权重刚初始化，dropout 关闭。用时取决于机器。",
        "reductions": "两个进程（gloo）；在 DistributedDataParallel 的 hook 中计数，因此数字是精确的。",
    },
    # of a variant, where it was measured
    "note on": {"SAM": "SAM 的内层一遍要算出所有权重的梯度，同样达不到极限。"},
    "peak": {"cpu": "常驻内存", "gpu": "分配器给出的显存"},
}
