"""
A BiLSTM on fastNLP's `Vocabulary` and `DataSet`, from scratch, with FGM.
"""

import torch
from fastNLP import Accuracy, DataSet, Evaluator, Trainer, Vocabulary, prepare_torch_dataloader
from torch import nn

from fastnlp_adv import FGMCallback, compat

compat.repair()  # fastNLP's dataloaders on torch 2
torch.manual_seed(0)

TEXTS = [f"{a} {b} film , {c} and {d}" for a in ("a", "the") for b in ("good", "bad") for c in "xyz" for d in "uvw"]
data = DataSet({"words": [text.split() for text in TEXTS], "labels": [int("good" in text) for text in TEXTS]})
vocabulary = Vocabulary().from_dataset(data, field_name="words")
vocabulary.index_dataset(data, field_name="words")
loader = prepare_torch_dataloader(data, batch_size=6, shuffle=True)


class BiLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(vocabulary), 32, padding_idx=vocabulary.padding_idx)
        self.lstm = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(32, 2)

    def forward(self, words):
        return self.head(self.dropout(self.lstm(self.embedding(words))[0].amax(1)))

    def train_step(self, words, labels):
        pred = self(words)
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}

    def evaluate_step(self, words, labels):
        return {"pred": self(words).argmax(-1), "target": labels}


model = BiLSTM()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
Trainer(model, loader, optimizer, driver="torch", n_epochs=5, callbacks=[FGMCallback(epsilon=1.0)]).run()
accuracy = Evaluator(model, loader, metrics={"acc": Accuracy()}, driver="torch").run()["acc#acc"]
print(f"accuracy {accuracy:.1%}")
