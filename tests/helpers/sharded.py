"""Models, methods and plain loops that sharded ranks and the one process that they are compared with have in common."""

from __future__ import annotations

import contextlib
from collections import Counter

import torch
from torch import nn
from torch.distributed import fsdp
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from fastnlp_adv import ATTA, AWP, FGM, FGSM, PGD, R3F, SMART, TAVAT, VAT, FreeLB, GradientPenalty, NEFTune, RDrop
from fastnlp_adv.attacks import Attack

VOCAB, CLASSES, WIDTH, STEPS = 50, 3, 8, 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x))) * x.mean(1, keepdim=True)


class Model(nn.Module):
    """
    Two embeddings, two blocks and a head, in double precision. The temperature falls from row to row and from forward
    to forward, so that R-Drop has something to compare without dropout.
    """

    def __init__(self, period=1, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.places = nn.Embedding(VOCAB, WIDTH, padding_idx=0), nn.Embedding(16, WIDTH)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(WIDTH, CLASSES)
        self.period, self.calls = period, 0
        self.double()

    def forward(self, input_ids, labels):
        x = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        pred = self.head(x.mean(1))
        loss = nn.functional.cross_entropy(pred, labels)
        self.calls += 1
        scale = 1.0 if self.calls % self.period == 0 else 0.5
        return {"loss": loss, "pred": pred * scale * torch.linspace(1.0, 0.5, len(labels), dtype=pred.dtype)[:, None]}


#: a method on a model, and after how many forwards the model's temperature is the same again
METHODS = {
    "none": (lambda model: None, 1),
    "fgm": (lambda model: FGM(model), 1),
    "fgm sequence": (lambda model: FGM(model, granularity="sequence"), 1),
    "fgm token": (lambda model: FGM(model, granularity="token"), 1),
    "fgm replace": (lambda model: FGM(model, replace=True), 1),
    "fgm of both": (lambda model: FGM(model, emb_name="*s.weight", granularity="sequence"), 1),
    "fgsm": (lambda model: FGSM(model), 1),
    "pgd": (lambda model: PGD(model, steps=3), 1),
    "pgd random": (lambda model: PGD(model, steps=2, random_init=True, granularity="sequence"), 1),
    "freelb": (lambda model: FreeLB(model, epsilon=0.15), 1),
    "tavat": (lambda model: TAVAT(model), 1),
    "atta": (lambda model: ATTA(model, storage_dtype=torch.float64), 1),
    "neftune": (lambda model: NEFTune(model), 1),
    "rdrop concat": (lambda model: RDrop(mode="concat"), 1),
    "rdrop two_pass": (lambda model: RDrop(mode="two_pass"), 2),
    "vat": (lambda model: VAT(model), 1),
    "smart": (lambda model: SMART(model, noise=0.1, epsilon=0.1, alpha=0.1), 1),
    "r3f": (lambda model: R3F(model, epsilon=0.1), 1),
}
#: those that need the weights whole
WHOLE = {
    "awp": (lambda model: AWP(model, gamma=0.1), 1),
    "gradient penalty": (lambda model: GradientPenalty(model, weight=1.0), 1),
    "smart bregman": (lambda model: SMART(model, weight=0.0, bregman_weight=10.0), 1),
    "fgm of other weights": (lambda model: FGM(model, emb_name="linear"), 1),
}
ALL = {**METHODS, **WHOLE}
#: how often a parameter's gradient is reduced per step, where it is not once
REDUCTIONS = {
    **dict.fromkeys(("fgm", "fgm sequence", "fgm token", "fgm of both", "fgsm", "pgd", "pgd random", "tavat"), 2),
    "freelb": 3,
    **dict.fromkeys(("awp", "fgm of other weights"), 2),
}
#: how many passes gather the weights per step, where it is simple
GATHERED = {
    **REDUCTIONS,
    **dict.fromkeys(("none", "atta", "neftune", "rdrop concat"), 1),
    "fgm replace": 2,
    "pgd": 4,
    "pgd random": 4,
}


def fully_sharded(model, *, embedding=True, **options):
    for part in [*model.blocks, *([model.words] if embedding else [])]:
        fsdp.fully_shard(part, **options)
    return fsdp.fully_shard(model, **options)


def fsdp_of(model, *kinds, **options):
    return FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({Block, *kinds}), device_id=torch.device("cpu"), **options
    )


def in_bfloat16(policy):
    return policy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


#: how a rank wraps the model, and how many parts of it are gathered and reduced by themselves
ENGINES = {
    "ddp": (DistributedDataParallel, 1),
    "fsdp": (lambda model: fsdp_of(model, use_orig_params=True), 3),
    "fsdp, flat, embeddings alone": (lambda model: fsdp_of(model, nn.Embedding, use_orig_params=False), 5),
    "fully_shard": (lambda model: fully_sharded(model, embedding=False), 3),
    "fully_shard, embedding alone": (fully_sharded, 4),
}
SHARDED = [name for name in ENGINES if name != "ddp"]
#: on the other engines: a method of each pattern of passes and of each kind of perturbation
FEW = ("none", "fgm", "fgm token", "fgm of both", "pgd random", "freelb", "tavat", "atta", "rdrop two_pass", "vat")


def runs():
    """(engine, method): every method on one engine of FSDP and one of `fully_shard`, a few on each other engine."""
    for engine in ENGINES:
        every = engine in ("fsdp", "fully_shard, embedding alone")
        yield from ((engine, method) for method in ALL if every or method in FEW or method in WHOLE)


MIXED = {
    "fsdp in bfloat16": lambda model: fsdp_of(
        model, use_orig_params=True, mixed_precision=in_bfloat16(fsdp.MixedPrecision)
    ),
    "fully_shard in bfloat16": lambda model: fully_sharded(model, mp_policy=in_bfloat16(fsdp.MixedPrecisionPolicy)),
}


#: what is trained through the Trainer, and after how many forwards the model's temperature is the same again
TRAINED = {
    "none": 1,
    "fgm": 1,
    "fgm replace": 1,
    "pgd": 1,
    "freelb": 1,
    "atta": 1,
    "rdrop concat": 1,
    "rdrop two_pass": 2,
    "fgm + rdrop": 1,
    "pgd + rdrop two_pass": 2,
    "vat": 3,
    "awp": 1,
}
TRAINER_REDUCTIONS = {"fgm": 2, "pgd": 2, "freelb": 3, "fgm + rdrop": 2, "pgd + rdrop two_pass": 2}


def trainings():
    """(engine, method, accumulation_steps) for each training through the Trainer."""
    for method in TRAINED:
        yield "fsdp", method, 2
    for method in ("none", "fgm", "pgd", "rdrop two_pass", "awp"):
        yield "fsdp, flat, embeddings alone", method, 2
    for method in ("none", "fgm", "pgd"):
        yield "fsdp", method, 1


def hooks_left(model):
    """The package's hooks that are on a model."""
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    return [repr(hook) for hook in hooks if "fastnlp_adv" in type(hook).__module__]


def full_weights(model, wrapped):
    """The whole weights, by the names of the bare model, in every rank."""
    if isinstance(wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(wrapped):
            named = {name: p.detach().clone() for name, p in model.named_parameters()}
        return {name.replace("_fsdp_wrapped_module.", ""): weight for name, weight in named.items()}
    named = {name: p.detach() for name, p in model.named_parameters()}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in named.items()}


def batches(ranks):
    """For each step one micro-batch per rank."""
    g = torch.Generator().manual_seed(3)
    out = []
    for _ in range(STEPS * ranks):
        ids = torch.randint(1, VOCAB, (4, 7), generator=g)
        for row, real in enumerate(torch.randint(3, 8, (4,), generator=g)):
            ids[row, real:] = 0
        out.append({"input_ids": ids, "labels": torch.randint(0, CLASSES, (4,), generator=g)})
    return [out[i : i + ranks] for i in range(0, len(out), ranks)]


def built(name, model, rank):
    """The method of a rank, whose noise is the rank's own."""
    state = torch.get_rng_state()
    torch.manual_seed(100 + rank)
    method = ALL[name][0](model)
    if method is not None:
        method.stream.on(torch.device("cpu"))
        method.close()
    torch.set_rng_state(state)
    return method


def backward(method, model, batch, indices, share=1.0):
    """The forward and backward passes of one micro-batch, which counts for a share of the loss."""

    def loss(batch=batch):
        return model(**batch)["loss"] * share

    if method is None:
        loss().backward()
    elif isinstance(method, ATTA):
        method.step(loss, indices=indices)
    elif isinstance(method, Attack):
        method.step(loss)
    else:
        with method.running():
            outputs = method(lambda batch: model(**batch), batch)
        (outputs["loss"] * share).backward()


def train(model, optimizer, methods, mine):
    """Two epochs; each step takes the gradient of one micro-batch per method."""
    for _ in range(2):
        for step, micro_batches in enumerate(mine):
            for method, batch in zip(methods, micro_batches, strict=True):
                indices = range(4 * step, 4 * step + 4)
                backward(method, model, batch, indices, share=1 / len(methods))
            optimizer.step()
            optimizer.zero_grad()
            for method in methods:
                if hasattr(method, "after_step"):
                    method.after_step()


def alone(name, ranks):
    """The weights after the training of one process, and how far they went."""
    model = Model(ALL[name][1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    methods = [built(name, model, rank) for rank in range(ranks)]
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), methods, batches(ranks))
    return {name: p.detach() for name, p in model.named_parameters()}, before


def norm_of_difference(a, b):
    """How far apart weights are, by name."""
    return float(torch.cat([(a[name] - b[name]).flatten() for name in b]).norm())


class Counted(TorchDispatchMode):
    """Counts collective operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith(("c10d", "_c10d")):
            self.counts[func._schema.name.split("::")[1].strip("_")] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counting():
    with Counted() as mode:
        yield mode.counts
