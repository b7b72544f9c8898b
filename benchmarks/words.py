"""The prose of the page: records hold only numbers, names and settings."""

from __future__ import annotations

TEXTBOOK = "A textbook loop runs every pass in full, so its own limit is higher: K + 1 for PGD-K."
FEW = "{layers} layer{s} only, so that the largest settings take minutes and not hours."

INTRODUCTION = """\
# Costs

Made by `python -m benchmarks` from the JSON files beside it; do not edit. `python -m benchmarks --render` makes page
and figures again without measuring.

All variants of a setting take their steps in turn, on the same model and batch, in fastNLP's Trainer. A time is given
as its ratio to the plain step of the same round: the median, in brackets the quartiles. **Plain steps** are the unit:
forward and backward pass, the optimizer's step (SGD) and the clearing of gradients.

The **limit** is the least that a step can cost by its passes: a forward pass counts 1/3, a full backward pass 2/3, a
backward pass that ends at the embeddings 1/3. Only forward and backward passes count, so a measured ratio may be below
its limit: the optimizer's step and the clearing of gradients run once per step.

The **textbook** loops are written from the definitions: they clone the embedding matrix, write the perturbation into
it and put the clone back, PGD clones and restores all gradients as well, and R-Drop runs two separate forward passes.
"""

#: by sweep
TITLE = {
    "methods": "A step of each method beside its textbook loop",
    "overhead": "The callback's own overhead",
    "memory": "Memory added to a plain step",
    "vocabulary": "Vocabulary",
    "hidden": "Width of the model",
    "tokens": "Size of the batch",
    "steps": "Inner steps",
    "rdrop": "R-Drop: one pass of the doubled batch, or two passes",
    "every": "Every method of the package",
    "fraction": "Attacking a part of the batch",
    "precision": "Inner passes in lower precision",
    "reductions": "Traffic of distributed training",
}

#: the values in which the points of a sweep differ
AXIS = {
    "vocabulary": "words in the vocabulary",
    "hidden": "hidden size",
    "tokens": "tokens in the batch",
    "steps": "inner steps K",
    "rdrop": "tokens in the batch",
}

COLUMNS = {
    "time": ["", "seconds per step", "in plain steps", "limit"],
    "precision": ["cosine to float32, ascent step by ascent step"],
    "memory": ["", "peak of each run, MiB", "added, MiB"],
    "reductions": ["per optimizer step", "reductions", "all-reduce calls", "MiB sent by a rank"],
    "overhead": ["callback", "microseconds per step", "% of a plain step"],
}

#: by sweep; filled with the settings of its first point
NOTE = {
    "methods": TEXTBOOK,
    "overhead": "The time of a callback beyond a loop that is written by hand for one model with the same passes, in "
    "the Trainer as well; of a callback in a step that it skips, beyond plain training. Measured on a model that "
    "computes next to nothing but has lookups of full size, so that microseconds show, and compared with a "
    "plain step of the real model. In brackets: 95 % intervals of the median.",
    "memory": "The peak of three steps ({peak}), in a process of its own for each run.",
    "vocabulary": "Only forward and backward passes, without the optimizer's step and the clearing of gradients. "
    "The plain step fills the dense gradient of the embedding and adds it "
    "to `.grad` (fastNLP zeroes gradients in place). Two training passes do so twice, PGD's inner passes never, "
    "so the ratio of PGD may fall. Layers of {hidden}, for the memory that textbook PGD needs at a million words.",
    "hidden": FEW,
    "tokens": FEW,
    "steps": f"{TEXTBOOK} {FEW}",
    "rdrop": FEW,
    "every": 'Default arguments, and `attn_implementation="eager"`, which the gradient penalty needs. The limit '
    "counts passes; the gradient penalty's second backward pass goes through the first one as well, so its limit "
    "is out of reach.",
    "fraction": "`fraction`: the passes of the attack run on this part of the examples, and one pass on all of them. "
    "By hand: the same passes on `inputs_embeds` in plain torch, without this package. They stay above the limit, "
    "too: a pass over few examples takes more than its share of a pass over all.",
    "precision": "`inner_autocast=torch.bfloat16`. The cosines compare the perturbation after each ascent "
    "step with the one in float32, on a model with fresh weights and dropout off. The time depends on the machine.",
    "reductions": "Two processes (gloo); counted in a hook of DistributedDataParallel, so the numbers are exact.",
}
#: by variant, where it was measured
NOTE_ON = {"SAM": " The limit of SAM is, too, since its inner pass computes the gradients of all weights."}
PEAK = {"cpu": "resident", "gpu": "allocated memory"}

#: settings that all points of a sweep may share
SETTINGS = {
    "batch": "batch",
    "length": "length",
    "vocab": "vocabulary",
    "hidden": "hidden size",
    "layers": "layers",
}
