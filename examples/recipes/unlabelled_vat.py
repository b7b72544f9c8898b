"""
Few labelled texts, many without labels: VAT trains on both. A `train_step` without a `loss` trains only on VAT's term.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import VATCallback, compat

compat.repair()
torch.manual_seed(0)

words = torch.randint(0, 40, (128, 6)) // 2 + 20 * (torch.arange(128) % 2).unsqueeze(1)
labels = torch.arange(128) % 2
known = torch.arange(128) < 16
data = DataSet({"words": words.tolist(), "labels": torch.where(known, labels, -1).tolist()})
# batches of 16: the first has labels, the other seven have none
loader = prepare_torch_dataloader(data, batch_size=16)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(40, 32), nn.Dropout(0.1), nn.Linear(32, 2)

    def forward(self, words):
        return self.head(self.dropout(self.embedding(words)).mean(1))

    def train_step(self, words, labels):
        pred = self(words)
        if (labels < 0).all():
            return {"pred": pred}
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
Trainer(model, loader, optimizer, driver="torch", n_epochs=15, callbacks=[VATCallback(epsilon=1.0)]).run()
model.eval()
accuracy = float((model(words[~known]).argmax(-1) == labels[~known]).float().mean())
print(f"accuracy on the texts without labels {accuracy:.1%}")
