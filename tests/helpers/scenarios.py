"""What the ranks and the one process that they are compared with have in common."""

from __future__ import annotations

import support
import torch
from fastNLP import Trainer
from torch import nn
from torch.utils.data import DataLoader

from fastnlp_adv import (
    FGM,
    PGD,
    ATTACallback,
    AWPCallback,
    FGMCallback,
    FGSMCallback,
    FreeLBCallback,
    GradientPenaltyCallback,
    PGDCallback,
    R3FCallback,
    RDropCallback,
    RDropMixin,
    SAMCallback,
    SMARTCallback,
    TAVATCallback,
    VATCallback,
)


class Some:
    """Attacks the same examples of a micro-batch whoever draws; two at least, for batch normalization."""

    def choose(self, examples):
        return torch.arange(0, examples, 2 if examples > 2 else 1)


class FGMOnSome(Some, FGM):
    pass


class PGDOnSome(Some, PGD):
    pass


class FGMOnSomeCallback(FGMCallback):
    method_class = FGMOnSome


class PGDOnSomeCallback(PGDCallback):
    method_class = PGDOnSome


NONE = 1e-30  # noise that vanishes in rounding: ranks draw other noise than one process that sees all batches
METHODS = {
    "none": list,
    "fgm": lambda: [FGMCallback()],
    "fgm auto": lambda: [FGMCallback(granularity="sequence", warmup="auto")],
    "fgm replace": lambda: [FGMCallback(replace=True, granularity="sequence")],
    "fgm part": lambda: [FGMOnSomeCallback(fraction=0.5)],
    "fgm part replace + rdrop": lambda: [FGMOnSomeCallback(fraction=0.5, replace=True), RDropCallback()],
    "pgd part": lambda: [PGDOnSomeCallback(fraction=0.5, steps=2, granularity="token")],
    "fgsm": lambda: [FGSMCallback()],
    "pgd": lambda: [PGDCallback(steps=3)],
    "pgd relative": lambda: [PGDCallback(steps=2, relative=True, warmup=0.5)],
    "rdrop concat": lambda: [RDropCallback(mode="concat")],
    "rdrop two_pass": lambda: [RDropCallback(mode="two_pass")],
    "fgm + rdrop": lambda: [FGMCallback(), RDropCallback()],
    "pgd + rdrop two_pass": lambda: [RDropCallback(mode="two_pass"), PGDCallback(steps=2)],
    "fgsm + rdrop": lambda: [RDropCallback(), FGSMCallback()],
    "freelb": lambda: [FreeLBCallback(init=0.0, epsilon=0.15)],
    "freelb + rdrop": lambda: [FreeLBCallback(init=0.0, epsilon=0.15), RDropCallback()],
    "atta": lambda: [ATTACallback(storage_dtype=torch.float32)],
    "awp": lambda: [AWPCallback(gamma=0.1)],
    "awp + rdrop two_pass": lambda: [AWPCallback(gamma=0.1), RDropCallback(mode="two_pass")],
    "awp replace": lambda: [AWPCallback(gamma=0.1, replace=True)],
    "sam": lambda: [SAMCallback(rho=0.5)],
    "sam adaptive + rdrop": lambda: [SAMCallback(rho=0.5, adaptive=True), RDropCallback()],
    "gradient penalty": lambda: [GradientPenaltyCallback(weight=1.0)],
    "fgm + gradient penalty": lambda: [FGMCallback(), GradientPenaltyCallback(weight=1.0)],
    "smart bregman": lambda: [SMARTCallback(weight=0.0, bregman_weight=10.0)],
}
#: regularizers on a model whose predictions differ from pass to pass: without a difference there would be no direction
BETWEEN_PASSES = {
    "vat": lambda: [VATCallback(xi=NONE)],
    "smart": lambda: [SMARTCallback(noise=NONE, epsilon=0.1, alpha=0.1)],
    "r3f": lambda: [R3FCallback(epsilon=NONE)],
    "fgm + vat + gradient penalty": lambda: [
        VATCallback(xi=NONE),
        FGMCallback(),
        GradientPenaltyCallback(weight=1.0),
    ],
}
#: with noise, or with what a rank alone has seen, there is no one process to compare with
WITH_NOISE = {
    "pgd random": lambda: [PGDCallback(random_init=True)],
    "fgm fraction": lambda: [FGMCallback(fraction=0.5)],
    "freelb noise": lambda: [FreeLBCallback()],
    "tavat": lambda: [TAVATCallback()],
    "vat noise": lambda: [VATCallback()],
    "smart noise": lambda: [SMARTCallback(noise=0.1, epsilon=0.1, alpha=0.1, bregman_weight=1.0)],
    "r3f noise": lambda: [R3FCallback(epsilon=0.1)],
    "tavat + smart + r3f": lambda: [TAVATCallback(), SMARTCallback(), R3FCallback()],
}
CALLBACKS = {**METHODS, **BETWEEN_PASSES, **WITH_NOISE}
#: in which forward of the last rank a model breaks
CRASHES = {"pgd": 3, "fgm + rdrop": 2}
BATCHES = 12  # micro-batches an epoch, over all ranks


class Plain(nn.Module):
    """A model whose ``forward`` is its training step, as fastNLP wants it inside DistributedDataParallel."""

    def __init__(self):
        super().__init__()
        self.inner = support.Classifier(dropout=0.0)

    def forward(self, input_ids, labels):
        return self.inner.train_step(input_ids, labels)


class Noisy(Plain):
    """Without dropout the halves of a doubled batch still differ: the temperature falls from row to row."""

    def forward(self, input_ids, labels):
        outputs = super().forward(input_ids, labels)
        pred = outputs["pred"] * torch.linspace(1.0, 0.5, len(labels)).unsqueeze(-1)
        return {"loss": outputs["loss"], "pred": pred}


class Alternating(Plain):
    """Without dropout two forwards still differ: the temperature of the first of so many is another one."""

    period, calls = 2, 0

    def forward(self, input_ids, labels):
        first = self.calls % self.period == 0
        self.calls += 1
        outputs = super().forward(input_ids, labels)
        return {"loss": outputs["loss"], "pred": outputs["pred"] * (1.0 if first else 0.5)}


class OfThree(Alternating):
    period = 3


class Mixed(RDropMixin, Alternating):
    """R-Drop inside the model, whose ``forward`` fastNLP calls."""

    rdrop_in = "forward"
    rdrop_kl_weight = 0.5


class Buffers(Plain):
    """With batch normalization, whose buffers DistributedDataParallel broadcasts."""

    def __init__(self):
        super().__init__()
        self.inner.dropout = nn.BatchNorm1d(8)

    def forward(self, input_ids, labels):
        inner = self.inner
        hidden, _ = inner.rnn(inner.word_embeddings(input_ids))
        pred = inner.head(inner.dropout(hidden.mean(1)))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


class Unused(Plain):
    """With a parameter that takes no part."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2))


class Both(Unused, Buffers):
    """With buffers and an unused parameter."""


MODELS = {
    "plain": Plain,
    "mixin": Mixed,
    "noisy": Noisy,
    "alternating": Alternating,
    "of three": OfThree,
    "buffers": Buffers,
    "unused": Unused,
    "buffers and unused": Both,
}
#: numbers of ranks; by three, means are rounded
WORLDS = (2, 3)
#: a method of each pattern of passes, on the plainest models
PATTERNS = ("none", "fgm", "pgd", "freelb", "rdrop two_pass", "smart bregman")


def scenarios(world):
    """
    (method, model, accumulation_steps): on two ranks every method with accumulation, on three one of each pattern of
    passes, on the model that makes it hardest.
    """
    if world == 2:
        for method in (*METHODS, *BETWEEN_PASSES):
            yield method, differing(method), 2
        yield "none", "mixin", 1
        yield "fgm", "mixin", 2
        yield "rdrop two_pass", "mixin", 2
    else:
        for method in (*PATTERNS, "fgm auto"):
            yield method, "buffers and unused", 1
    for method in PATTERNS:
        yield method, "plain" if world == 2 else "buffers", 1


def differing(method):
    """The model whose predictions differ where the method compares them."""
    if method in BETWEEN_PASSES:
        return "alternating" if method == "r3f" else "of three"
    if "rdrop" in method:
        return "alternating" if "two_pass" in method else "noisy"
    return "plain"


def with_noise(world):
    """The same, for methods that no other run can be compared with."""
    for method in WITH_NOISE:
        yield method, "plain" if world == 2 else "unused", 2


class Batches(DataLoader):
    """Batches as they are. Tells the indices of their examples, as fastNLP's loader does."""

    def __init__(self, batches):
        super().__init__(batches, batch_size=None)

    def __iter__(self):
        first = 0
        for batch in super().__iter__():
            self._indices = list(range(first, first + len(batch["labels"])))
            first += len(batch["labels"])
            yield batch

    def get_batch_indices(self):
        return self._indices


def micro_batches(world):
    """The data in micro-batches of 4, the last ``world`` of them shorter and of different lengths."""
    data = support.samples(4 * BATCHES, seed=3)
    batches = [data[i : i + 4] for i in range(0, len(data), 4)]
    for rank in range(world):
        batches[BATCHES - world + rank] = batches[BATCHES - world + rank][: 1 + (rank % 3) + 1]
    return batches


def trainer(model, method, batches, accumulation, driver="torch", **kwargs):
    """A Trainer that sees these micro-batches in this order, for three optimizer steps at least."""
    batches = [support.collate(batch) for batch in batches]
    bare = getattr(model, "module", model)
    n_epochs = 1 if len(batches) // accumulation >= 3 and method != "atta" else 2  # the first of ATTA is plain
    return Trainer(
        model=model,
        driver=driver,
        train_dataloader=Batches(batches),
        optimizers=torch.optim.SGD(bare.parameters(), lr=0.05),
        n_epochs=8 if method == "fgm auto" else n_epochs,  # until the loss has fallen
        callbacks=CALLBACKS[method](),
        accumulation_steps=accumulation,
        progress_bar=None,
        use_dist_sampler=False,
        **kwargs,
    )
