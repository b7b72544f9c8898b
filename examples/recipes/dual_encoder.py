"""
A dual encoder with an in-batch loss: each text is distinguished from the other texts of its batch.

The model runs twice on a batch, and both lookups are perturbed. R-Drop would need `mode="two_pass"`: in a doubled batch
each text would have to be distinguished from its own copy.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import FGMCallback, RDropCallback, compat

compat.repair()
torch.manual_seed(0)

queries = torch.randint(0, 50, (64, 4))
answers = queries + 50  # every query has an answer in other words
loader = prepare_torch_dataloader(
    DataSet({"queries": queries.tolist(), "answers": answers.tolist()}), batch_size=16, shuffle=True
)


class DualEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.project = nn.Embedding(100, 32), nn.Dropout(0.1), nn.Linear(32, 32)

    def encode(self, words):
        return nn.functional.normalize(self.project(self.dropout(self.embedding(words)).mean(1)), dim=-1)

    def forward(self, queries, answers):
        return self.encode(queries) @ self.encode(answers).T / 0.1  # temperature

    def train_step(self, queries, answers):
        pred = self(queries, answers)
        return {"loss": nn.functional.cross_entropy(pred, torch.arange(len(pred), device=pred.device)), "pred": pred}


model = DualEncoder()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
callbacks = [FGMCallback(epsilon=0.5), RDropCallback(kl_weight=0.2, mode="two_pass")]
Trainer(model, loader, optimizer, driver="torch", n_epochs=15, callbacks=callbacks).run()
model.eval()
accuracy = float((model(queries, answers).argmax(-1) == torch.arange(64)).float().mean())
print(f"the right one of 64 answers comes first for {accuracy:.1%} of the queries")
