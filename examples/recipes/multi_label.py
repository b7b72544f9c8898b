"""
Several labels per text: VAT and R-Drop compare independent probabilities with `divergence="bernoulli"`.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import FGMCallback, RDropCallback, VATCallback, compat

compat.repair()
torch.manual_seed(0)

words = torch.randint(0, 40, (96, 6))
labels = torch.stack([(words < 10).any(1), (words > 30).any(1), (words == 20).any(1)], 1).float()
loader = prepare_torch_dataloader(DataSet({"words": words.tolist(), "labels": labels.tolist()}), batch_size=12)


class MultiLabel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(40, 32), nn.Dropout(0.1), nn.Linear(32, 3)

    def forward(self, words):
        return self.head(self.dropout(self.embedding(words)).amax(1))

    def train_step(self, words, labels):
        pred = self(words)
        return {"loss": nn.functional.binary_cross_entropy_with_logits(pred, labels.float()), "pred": pred}


model = MultiLabel()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
callbacks = [
    FGMCallback(epsilon=0.5),
    RDropCallback(kl_weight=0.5, divergence="bernoulli"),
    VATCallback(epsilon=0.5, weight=0.5, divergence="bernoulli"),
]
Trainer(model, loader, optimizer, driver="torch", n_epochs=10, callbacks=callbacks).run()
model.eval()
accuracy = float(((model(words) > 0) == labels.bool()).float().mean())
print(f"accuracy per label {accuracy:.1%}")
