"""
Token classification with a model of transformers: FGM, and R-Drop on the labelled positions only.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from transformers import BertConfig, BertForTokenClassification

from fastnlp_adv import FGMCallback, RDropCallback, compat

compat.repair()
torch.manual_seed(0)

ids = torch.randint(5, 60, (48, 8))
ids[:, 0], ids[:, -1] = 1, 2  # [CLS] and [SEP], which have no label: -100
labels = (ids > 30).long().masked_fill((ids == 1) | (ids == 2), -100)
fields = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": labels.tolist()}
loader = prepare_torch_dataloader(DataSet(fields), batch_size=8, shuffle=True)

size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForTokenClassification(BertConfig(vocab_size=64, num_labels=2, **size))  # or .from_pretrained(...)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
callbacks = [FGMCallback(epsilon=0.1), RDropCallback(kl_weight=1.0)]
Trainer(model, loader, optimizer, driver="torch", n_epochs=12, callbacks=callbacks).run()
model.eval()
known = labels != -100
accuracy = float((model(ids).logits.argmax(-1) == labels)[known].float().mean())
print(f"accuracy per labelled token {accuracy:.1%}")
