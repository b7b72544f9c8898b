"""
FGM in a training loop of your own, with float16 on a GPU, gradient accumulation, clipping and averaged weights.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGM
from fastnlp_adv.attacks import Pass


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list,
    batch_size: int = 8,
    accumulation: int = 1,
    max_norm: float = 1.0,
) -> AveragedModel:
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))

    def forward(each: Pass) -> Tensor:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            return model(**each.of(batch)).loss

    def scale(loss: Tensor) -> Tensor:
        return scaler.scale(loss / accumulation)

    def backward(loss: Tensor, each: Pass) -> None:
        scale(loss).backward()

    model.train()
    with FGM(model, epsilon=0.5) as fgm:
        for number, batch in enumerate(torch.utils.data.DataLoader(data, batch_size=batch_size), 1):
            batch = {name: value.to(device) for name, value in batch.items()}
            fgm.drive(forward, backward, batch, scale=scale, accumulation_steps=accumulation)
            if number % accumulation == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)  # of the sum of both passes
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                averaged.update_parameters(model)
    return averaged


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data, accumulation=2)
