"""
A regression: regularizers compare predictions by their squared difference, with `divergence="mse"`.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import FGMCallback, RDropCallback, SMARTCallback, compat

compat.repair()
torch.manual_seed(0)

words = torch.randint(0, 40, (96, 6))
scores = words.float().mean(1, keepdim=True) / 20 - 1
loader = prepare_torch_dataloader(DataSet({"words": words.tolist(), "scores": scores.tolist()}), batch_size=12)


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(40, 32), nn.Dropout(0.05), nn.Linear(32, 1)

    def forward(self, words):
        return self.head(self.dropout(self.embedding(words)).mean(1))

    def train_step(self, words, scores):
        pred = self(words)
        return {"loss": nn.functional.mse_loss(pred, scores), "pred": pred}


def error():
    model.eval()
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(words), scores))


model = Regressor()
before = error()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
callbacks = [
    FGMCallback(epsilon=0.5),
    RDropCallback(kl_weight=1.0, divergence="mse"),
    SMARTCallback(divergence="mse"),
]
Trainer(model, loader, optimizer, driver="torch", n_epochs=20, callbacks=callbacks).run()
after = error()
print(f"mean squared error {before:.4f} -> {after:.4f}")
