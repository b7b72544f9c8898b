"""The program that the pages share: a small model with its data and its optimizer. Put it beside your script."""

import torch
from fastNLP import DataSet, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import compat

compat.repair()  # repairs fastNLP 1.0.1 for torch 2


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(100, 32), nn.Dropout(0.1), nn.Linear(32, 2)

    def train_step(self, words, labels):
        pred = self.head(self.dropout(self.embedding(words)).mean(1))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}


torch.manual_seed(0)
words = torch.randint(0, 100, (256, 8))
data = DataSet({"words": words.tolist(), "labels": ((words < 50).sum(1) > 4).long().tolist()})
loader = prepare_torch_dataloader(data, batch_size=16)
model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
