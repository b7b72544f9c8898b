"""
Small trainings in the Trainer of transformers, and the same written out as plain loops over embedded inputs and copied
weights.

    python by_hand.py FOLDER

trains the rows of the table with two processes, and leaves the weights and the number of reductions of rank N in
FOLDER/N.pt.
"""

from __future__ import annotations

import copy
import inspect
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from support import TORCH, VOCAB, bert_config
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

EPSILON, ALPHA, GAMMA, RHO, KL = 0.3, 0.2, 0.02, 0.1, 0.7
METHODS = {
    "fgm": lambda m: [m.FGM(epsilon=EPSILON)],
    "pgd": lambda m: [m.PGD(epsilon=EPSILON, alpha=ALPHA, steps=3)],
    "awp": lambda m: [m.AWP(gamma=GAMMA)],
    "sam": lambda m: [m.SAM(rho=RHO)],
    "rdrop": lambda m: [m.RDrop(kl_weight=KL)],
    "fgm+rdrop": lambda m: [m.RDrop(kl_weight=KL), m.FGM(epsilon=EPSILON)],
}
#: batches per optimizer step, label smoothing, processes, task, the norm that gradients are clipped to
LEVELS = [(1, 4), (0.0, 0.1), (1, 2), ("classes", "words"), (0.0, 0.4)]
CODES = {"fgm": "00000", "pgd": "01010", "awp": "00110", "sam": "01100", "rdrop": "01011", "fgm+rdrop": "01001"}
#: each method with each level, and each level with each one of the others
TABLE = [
    (method, *(pair[int(bit) ^ other] for pair, bit in zip(LEVELS, code, strict=True)))
    for method, code in CODES.items()
    for other in (0, 1)
]
SIZE, LENGTH, STEPS, RATE = 3, 5, 3, 0.1


class FixedDropout(nn.Module):
    """Dropout whose mask depends on the place in the batch only, so that the rows of a doubled batch differ."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(x.dim()), dtype=x.dtype) > self.p
        return x * mask / (1 - self.p)


def build(task, seed=0):
    """A model in double precision: one whose loss leaves the count of labels out, or one that divides by it."""
    from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    if task == "classes":
        model = BertForSequenceClassification(bert_config(0.2, num_hidden_layers=1, attention_probs_dropout_prob=0.0))
    else:
        size = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": VOCAB, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**size, use_cache=False, bos_token_id=0, eos_token_id=0))
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, FixedDropout(child.p))
    return model.double().train()


def data(task, n):
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(1, VOCAB, (n, LENGTH), generator=g)
    if task == "classes":
        labels = torch.randint(0, 3, (n,), generator=g)
    else:  # as a collator of texts of several lengths
        labels = ids.clone()
        labels[:, 0] = -100
        labels[torch.rand(ids.shape, generator=g) < 0.3] = -100
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


#: of one epoch that leaves nothing behind
SHORT = {
    "num_train_epochs": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "use_cpu": True,
}


def arguments(folder, **changed):
    from transformers import TrainingArguments

    settings = {"per_device_train_batch_size": SIZE, "max_grad_norm": 0.0, "average_tokens_across_devices": True}
    return TrainingArguments(folder, **{**SHORT, **settings, **changed})


def trainer_of(model, methods, folder, dataset, **changed):
    """A Trainer that takes the data in their order, and trains by gradient descent."""
    from fastnlp_adv.trainers.transformers import AdversarialTrainer

    class Trainer(AdversarialTrainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    args = arguments(folder, **changed)
    return Trainer(model=model, args=args, train_dataset=dataset, methods=methods, optimizers=(optimizer, constant))


def train(method, accumulation, smoothing, processes, task, clip, watch=None):
    """Train in the Trainer; return the model."""
    import fastnlp_adv

    model = build(task)
    dataset = data(task, SIZE * accumulation * processes * STEPS)
    changed = {"gradient_accumulation_steps": accumulation, "label_smoothing_factor": smoothing, "max_grad_norm": clip}
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(model, METHODS[method](fastnlp_adv), folder, dataset, **changed)
        if watch is not None:
            trainer.add_callback(watch(trainer))
        trainer.train()
    assert trainer.state.global_step == STEPS
    return model


def by_hand(method, accumulation, smoothing, processes, task, clip):
    """The same training, written out."""
    from transformers.trainer_pt_utils import LabelSmoother

    # whether the loss is told `num_items_in_batch`, BERT's from transformers 5 on, and divided by it
    is_told = "kwargs" in inspect.signature(build(task).forward).parameters
    smooths_by_count = "num_items_in_batch" in inspect.signature(LabelSmoother.__call__).parameters
    counts_labels = smooths_by_count if smoothing else task == "words"
    model = build(task)
    samples = data(task, SIZE * accumulation * processes * STEPS)
    batches = [
        {key: torch.stack([sample[key] for sample in samples[i : i + SIZE]]) for key in samples[0]}
        for i in range(0, len(samples), SIZE)
    ]
    for step in range(STEPS):
        window = batches[step * accumulation * processes : (step + 1) * accumulation * processes]
        counts = [int((targets(task, batch["labels"]) != -100).sum()) for batch in window]
        total = None
        for batch, count in zip(window, counts, strict=True):
            if is_told and counts_labels:  # the mean over all labels of the step
                weight, part = processes / sum(counts), 1 / accumulation
            elif is_told:  # the sum of the means over the batches: transformers leaves the division to the model
                weight, part = processes / count, processes
            else:
                weight, part = 1 / (count * accumulation), 1 / accumulation
            grads = gradients(method, model, batch, task, smoothing, weight, part)
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        total = [g / processes for g in total]
        norm = torch.stack([g.norm() for g in total]).norm()
        factor = min(1.0, float(clip / (norm + 1e-6))) if clip else 1.0
        with torch.no_grad():
            for p, g in zip(model.parameters(), total, strict=True):
                p -= RATE * factor * g
    return model


def targets(task, labels):
    """The label of each prediction: in a language model the next position's."""
    return labels if task == "classes" else torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)


def gradients(method, model, batch, task, smoothing, weight, part):
    """The gradients of a step on one batch, parameter by parameter."""
    parameters, table = [*model.parameters()], model.get_input_embeddings().weight
    goal = targets(task, batch["labels"])
    doubles = "rdrop" in method

    def loss_of(model, move):
        """The loss where the rows of the table are moved."""
        rows = model.get_input_embeddings().weight + move
        ids, wanted = batch["input_ids"], goal
        if doubles:
            ids, wanted = torch.cat([ids, ids]), torch.cat([goal, goal])
        logits = model(inputs_embeds=rows[ids]).logits
        flat = cross_entropy(
            logits.flatten(0, -2), wanted.flatten(), reduction="sum", ignore_index=-100, label_smoothing=smoothing
        )
        loss = flat * weight
        if doubles:
            first, second = logits.log_softmax(-1).chunk(2)
            both = (first.exp() - second.exp()) * (first - second)  # of both directions
            counted = (goal != -100).unsqueeze(-1)
            loss = loss / 2 + part * KL * (both * counted).sum() / 2 / counted.sum()
        return loss

    still = torch.zeros_like(table)

    def at(move):
        return torch.autograd.grad(loss_of(model, move), parameters)

    def slope(move):
        move = move.clone().requires_grad_()
        return torch.autograd.grad(loss_of(model, move), move)[0]

    def at_moved_weights(moves):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, move in zip(moved.parameters(), moves, strict=True):
                p += move
        return torch.autograd.grad(loss_of(moved, still), [*moved.parameters()])

    clean = at(still)
    if method in ("none", "rdrop"):
        return clean
    if method in ("fgm", "fgm+rdrop"):
        g = slope(still)
        other = at(EPSILON * g / g.norm())
    elif method == "pgd":
        move = still
        for _ in range(3):
            g = slope(move)
            move = move + ALPHA * g / g.norm()
            move = move * min(1.0, EPSILON / float(move.norm()))
        other = at(move)
    elif method == "awp":
        names = [name for name, _ in model.named_parameters()]
        moves = [
            GAMMA * p.detach().norm() * g / g.norm() if "weight" in name and g.norm() > 0 else torch.zeros_like(p)
            for name, p, g in zip(names, parameters, clean, strict=True)
        ]
        other = at_moved_weights(moves)
    else:
        norm = torch.stack([g.norm() for g in clean]).norm()
        return at_moved_weights([RHO * g / norm for g in clean])
    return [a + b for a, b in zip(clean, other, strict=True)]


def distance(model, other):
    return max(float((p - q).detach().abs().max()) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def worker(folder):
    import os

    from torch import distributed
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Counts the buckets of gradients that are reduced; small models have one."""

        def __init__(self, trainer):
            self.trainer = trainer

        def on_train_begin(self, *_, **__):
            self.trainer.model_wrapped.register_comm_hook(None, self.reduce)

        @staticmethod
        def reduce(_, bucket):
            counts.append(1)
            work = distributed.all_reduce(bucket.buffer().div_(distributed.get_world_size()), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

    results = {}
    for row in (row for row in TABLE if row[3] == 2):
        counts = []
        results[row] = {"weights": train(*row, watch=Watch).state_dict(), "reductions": len(counts)}
    if TORCH >= (2, 6):
        results["resumed"] = resumed(Path(folder) / "checkpoints")
    torch.save(results, Path(folder) / f"{os.environ['RANK']}.pt")


def resumed(folder):
    """The weights of a training with noise and perturbations of its examples, and of the same one resumed."""
    import fastnlp_adv

    weights = []
    for checkpoint in (None, str(folder / "checkpoint-3")):
        model = build("classes", seed=1)
        dataset = [{**sample, "index": torch.tensor(i)} for i, sample in enumerate(data("classes", 6 * SIZE))]
        methods = [fastnlp_adv.ATTA(epsilon=0.5, alpha=0.3), fastnlp_adv.VAT()]
        settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
        trainer_of(model, methods, str(folder), dataset, **settings).train(resume_from_checkpoint=checkpoint)
        weights.append(model.state_dict())
    return weights


if __name__ == "__main__":
    import transformers  # noqa: F401 - before the ranks are forked
    from forked import launch

    launch(worker, sys.argv[1])
