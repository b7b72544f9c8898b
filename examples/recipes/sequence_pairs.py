"""
Pairs of texts with a model of transformers: FGM with a separate norm for each pair.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGMCallback, compat

compat.repair()
torch.manual_seed(0)

# As a tokenizer gives them: [CLS] first [SEP] second [SEP]. Label 1: both texts are of the second kind.
first, second = torch.randint(5, 15, (96, 3)), torch.randint(5, 15, (96, 3))
kinds = torch.randint(0, 2, (96, 2))
first, second = first + 20 * kinds[:, :1], second + 20 * kinds[:, 1:]
one, two = torch.full((96, 1), 1), torch.full((96, 1), 2)
ids = torch.cat([one, first, two, second, two], 1)
segments = torch.tensor([[0] * 5 + [1] * 4]).expand(96, -1)
labels = kinds.prod(1)
fields = {"input_ids": ids.tolist(), "token_type_ids": segments.tolist(), "labels": labels.tolist()}
loader = prepare_torch_dataloader(DataSet(fields), batch_size=12, shuffle=True)

size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **size))  # or .from_pretrained(...)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
callback = FGMCallback(epsilon=0.03, granularity="sequence")
Trainer(model, loader, optimizer, driver="torch", n_epochs=15, callbacks=[callback]).run()
model.eval()
accuracy = float((model(ids, token_type_ids=segments).logits.argmax(-1) == labels).float().mean())
print(f"accuracy {accuracy:.1%}")
