"""
FGM with Accelerate. The attack is built on the bare model, before `prepare` wraps it.
"""

from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGM
from fastnlp_adv.attacks import Pass


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: list, batch_size: int = 8, accumulation: int = 1
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)  # no `cpu` where there is a GPU
    fgm = FGM(model, epsilon=0.5)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    prepared, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)

    def forward(each: Pass) -> Tensor:
        return prepared(**each.of(batch)).loss

    def backward(loss: Tensor, each: Pass) -> None:
        accelerator.backward(loss)  # which divides for accumulation, and scales in float16

    def no_sync() -> AbstractContextManager:
        return accelerator.no_sync(prepared)

    # gradients are reduced in the last pass
    how = {"no_sync": no_sync, "reduces": accelerator.num_processes > 1, "accumulation_steps": accumulation}
    with fgm:
        for batch in loader:
            with accelerator.accumulate(prepared):
                fgm.drive(forward, backward, batch, **how)
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data, accumulation=2)
