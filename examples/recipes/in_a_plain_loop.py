"""
FGM in a training loop of your own.
"""

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGM


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, batch_size: int = 8) -> None:
    model.train()
    with FGM(model, epsilon=0.5) as fgm:
        for batch in torch.utils.data.DataLoader(data, batch_size=batch_size):
            model(**batch).loss.backward()
            with fgm.attack():
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data)
