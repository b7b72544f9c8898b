"""Small real models, data and Trainers for the tests, and the textbook loops they are compared with."""

from __future__ import annotations

import pytest
import torch
from fastNLP import Callback, TorchDataLoader, Trainer
from torch import nn

VOCAB, CLASSES = 50, 3
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def since_torch(major, minor, what):
    """Skip a test before a version of torch that brings what the test needs; says what."""
    return pytest.mark.skipif((major, minor) > TORCH, reason=f"{what} from torch {major}.{minor} on")


def samples(n=24, length=7, seed=0):
    """Sentences of random tokens and random length, padded with 0, and labels."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        real = int(torch.randint(3, length + 1, (1,), generator=g))
        ids = torch.randint(1, VOCAB, (length,), generator=g)
        ids[real:] = 0
        label = torch.randint(0, CLASSES, (1,), generator=g).squeeze(0)
        out.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": label})
    return out


def collate(batch):
    return {key: torch.stack([sample[key] for sample in batch]) for key in batch[0]}


def loader(data=None, batch_size=4, shuffle=False):
    """fastNLP's dataloader, which tells indices; without workers, torch 2 takes no ``prefetch_factor``."""
    data = samples() if data is None else data
    return TorchDataLoader(data, batch_size=batch_size, shuffle=shuffle, collate_fn=collate, prefetch_factor=None)


class Classifier(nn.Module):
    """Word embeddings, a recurrent layer, dropout and a linear layer."""

    def __init__(self, dropout=0.1, padding_idx=0, seed=0, hidden=8, **embedding):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.word_embeddings = nn.Embedding(VOCAB, hidden, padding_idx=padding_idx, **embedding)
            self.rnn = nn.GRU(hidden, hidden, batch_first=True)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(hidden, CLASSES)

    def forward(self, input_ids):
        hidden, _ = self.rnn(self.dropout(self.word_embeddings(input_ids)))
        return self.head(self.dropout(hidden.mean(1)))

    def train_step(self, input_ids, labels):
        pred = self(input_ids)
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}

    def evaluate_step(self, input_ids, labels):
        return {"pred": self(input_ids).argmax(-1), "target": labels}


class Bert(nn.Module):
    """A two-layer BERT in the shape of a fastNLP user's model."""

    def __init__(self, dropout=0.1, seed=0, **config):
        super().__init__()
        from transformers import BertForSequenceClassification  # takes seconds, and most processes do without

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.back_bone = BertForSequenceClassification(bert_config(dropout, **config))

    def train_step(self, input_ids, attention_mask, labels):
        out = self.back_bone(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": out.loss, "pred": out.logits}

    def evaluate_step(self, input_ids, attention_mask, labels):
        out = self.back_bone(input_ids=input_ids, attention_mask=attention_mask)
        return {"pred": out.logits.argmax(-1), "target": labels}


def bert_config(dropout=0.1, **config):
    from transformers import BertConfig

    defaults = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "num_labels": CLASSES,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "attn_implementation": "eager",
    }
    return BertConfig(**{**defaults, **config})


def build(model, callbacks=None, *, data=None, batch_size=4, lr=0.05, n_epochs=20, n_batches=6, **kwargs):
    """A Trainer on the CPU; six batches unless told otherwise, and the rest of the last epoch, which fastNLP ends."""
    kwargs.setdefault("optimizers", torch.optim.SGD(model.parameters(), lr=lr))
    kwargs.setdefault("train_dataloader", loader(data, batch_size))
    return Trainer(
        model=model,
        driver="torch",
        device="cpu",
        n_epochs=n_epochs,
        n_batches=n_batches,
        callbacks=callbacks,
        progress_bar=None,
        **kwargs,
    )


def train(model, callbacks=None, *, seed=1, **kwargs):
    """Train a model from a seed; the dropout masks of two runs are the same as long as their forwards are."""
    trainer = build(model, callbacks, **kwargs)
    torch.manual_seed(seed)
    trainer.run()
    return trainer


def weights(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def distance(model, other):
    """Relative distance of the weights of two models."""
    a, b = weights(model), weights(other)
    return float((a - b).norm() / b.norm())


def snapshot(model):
    """Everything that an attack must leave alone."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: p.requires_grad for name, p in model.named_parameters()},
        {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        {name: len(p._backward_hooks or ()) for name, p in model.named_parameters()},
    )


def assert_untouched(model, before):
    now = snapshot(model)
    assert all(torch.equal(now[0][key], before[0][key]) for key in before[0])
    assert now[1:] == before[1:]


# The textbook loops, written from the definitions on the weights: clone, perturb, restore.


def matched(model, name):
    return [p for n, p in model.named_parameters() if name in n and p.requires_grad]


def textbook_fgm(model, epsilon=1.0, name="word_embeddings"):
    def batch_step_fn(trainer, batch):
        trainer.backward(trainer.train_step(batch))
        saved = []
        for param in matched(model, name):
            saved.append((param, param.detach().clone()))
            size = param.grad.norm()
            if size > 0 and torch.isfinite(size):
                param.data += epsilon * param.grad / size
        trainer.backward(trainer.train_step(batch))
        for param, value in saved:
            param.data = value
        trainer.step()
        trainer.zero_grad()

    return batch_step_fn


def textbook_pgd(model, epsilon=1.0, alpha=None, steps=3, name="word_embeddings"):
    alpha = 1.5 * epsilon / steps if alpha is None else alpha

    def batch_step_fn(trainer, batch):
        trainer.backward(trainer.train_step(batch))
        params = matched(model, name)
        origin = [p.detach().clone() for p in params]
        clean = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        for step in range(steps):
            for param, start in zip(params, origin, strict=True):
                size = param.grad.norm()
                if size > 0 and torch.isfinite(size):
                    param.data += alpha * param.grad / size
                    r = param.data - start
                    if r.norm() > epsilon:
                        r = epsilon * r / r.norm()
                    param.data = start + r
            if step < steps - 1:
                model.zero_grad()
                trainer.backward(trainer.train_step(batch))
        for n, p in model.named_parameters():
            p.grad = clean.get(n)
        trainer.backward(trainer.train_step(batch))
        for param, start in zip(params, origin, strict=True):
            param.data = start
        trainer.step()
        trainer.zero_grad()

    return batch_step_fn


def callback_of(**hooks):
    """A callback that runs functions, by the names of the hooks."""
    return type("Functions", (Callback,), {name: staticmethod(hook) for name, hook in hooks.items()})()


class Assign(Callback):
    """Assigns arguments to another callback at the end of a batch."""

    def __init__(self, callback, batch, **values):
        super().__init__()
        self.callback, self.batch, self.values = callback, batch, values

    def on_train_batch_end(self, trainer):
        if trainer.global_forward_batches == self.batch:
            for name, value in self.values.items():
                setattr(self.callback, name, value)
