"""
Named entities with a BiLSTM and fastNLP's conditional random field, with PGD and R-Drop on the emissions.
"""

import torch
from fastNLP import DataSet, Trainer, Vocabulary, prepare_torch_dataloader
from fastNLP.modules.torch import ConditionalRandomField
from torch import nn

from fastnlp_adv import PGDCallback, RDropCallback, compat

compat.repair()
torch.manual_seed(0)

NAMES, PLACES = ("Ann", "Bo", "Cy", "Di"), ("Rome", "Oslo", "Lima")
TEXTS = [f"{name} {verb} {place} today" for name in NAMES for verb in ("likes", "left") for place in PLACES]
TAGS = {"O": 0, "PER": 1, "LOC": 2}
tags = [[TAGS["PER"] * (w in NAMES) + TAGS["LOC"] * (w in PLACES) for w in text.split()] for text in TEXTS]
data = DataSet({"words": [text.split() for text in TEXTS], "tags": tags})
vocabulary = Vocabulary().from_dataset(data, field_name="words")
vocabulary.index_dataset(data, field_name="words")
loader = prepare_torch_dataloader(data, batch_size=8, shuffle=True)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(vocabulary), 32, padding_idx=vocabulary.padding_idx)
        self.lstm = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(32, len(TAGS))
        self.crf = ConditionalRandomField(len(TAGS))

    def emissions(self, words):
        return self.head(self.dropout(self.lstm(self.embedding(words))[0]))

    def train_step(self, words, tags):
        pred = self.emissions(words)
        return {"loss": self.crf(pred, tags, mask=words != vocabulary.padding_idx).mean(), "pred": pred}

    def decode(self, words):
        return self.crf.viterbi_decode(self.emissions(words), mask=words != vocabulary.padding_idx)[0]


def mask(batch, outputs):  # R-Drop compares the emissions of real words
    return batch["words"] != vocabulary.padding_idx


model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
callbacks = [PGDCallback(epsilon=0.5, steps=2), RDropCallback(kl_weight=0.5, mask=mask)]
Trainer(model, loader, optimizer, driver="torch", n_epochs=8, callbacks=callbacks).run()
model.eval()
right = [(model.decode(batch["words"]) == batch["tags"]).float().mean() for batch in loader]
accuracy = float(torch.stack(right).mean())
print(f"accuracy per word {accuracy:.1%}")
