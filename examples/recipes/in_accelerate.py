"""
FGM with Accelerate. The attack is built on the bare model, before `prepare` wraps it; the first pass does not
synchronize.
"""

import torch
from accelerate import Accelerator
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGM


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, batch_size: int = 8) -> None:
    accelerator = Accelerator(cpu=True)  # without `cpu` on a GPU
    model.train()
    with FGM(model, epsilon=0.5) as fgm:
        loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for batch in loader:
            with accelerator.no_sync(prepared):
                accelerator.backward(prepared(**batch).loss)
            with fgm.attack():
                accelerator.backward(prepared(**batch).loss)
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data)
