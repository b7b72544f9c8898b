"""
FGM, AWP and R-Drop in the `Trainer` of transformers: `AdversarialTrainer` takes a list of methods.
"""

import tempfile

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from fastnlp_adv import AWP, FGM, RDrop
from fastnlp_adv.trainers.transformers import AdversarialTrainer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, methods: list | None = None) -> None:
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            max_grad_norm=0.0,  # no clipping; with it, the sum of both gradients is clipped
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        AdversarialTrainer(
            model=model,
            args=args,
            train_dataset=data,
            optimizers=(optimizer, constant),
            methods=[FGM(epsilon=0.5)] if methods is None else methods,
        ).train()


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for methods in ([FGM(epsilon=0.5)], [AWP(gamma=0.001)], [RDrop(kl_weight=1.0)], [FGM(epsilon=0.5), RDrop()]):
        model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data, methods)
