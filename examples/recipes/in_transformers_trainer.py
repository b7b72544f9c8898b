"""
FGM in the `Trainer` of transformers: `training_step`, which runs forward and backward, runs twice.
"""

import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from fastnlp_adv import FGM


class FGMTrainer(transformers.Trainer):
    def __init__(self, *args: Any, epsilon: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fgm = FGM(self.model, epsilon=epsilon)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.fgm:  # taps the embedding for this step
            loss = super().training_step(*args, **kwargs)
            with self.fgm.attack():
                super().training_step(*args, **kwargs)
        return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, batch_size: int = 8) -> None:
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            max_grad_norm=0.0,  # no clipping; with it, the sum of both gradients is clipped
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        FGMTrainer(model=model, args=args, train_dataset=data, optimizers=(optimizer, constant)).train()


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data)
