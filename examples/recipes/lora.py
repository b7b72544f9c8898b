"""
LoRA with PEFT: the embedding is frozen, but can be attacked.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGMCallback, RDropCallback, compat

compat.repair()
torch.manual_seed(0)

ids = torch.randint(5, 60, (96, 8))
labels = (ids[:, 1] > 30).long()
loader = prepare_torch_dataloader(DataSet({"input_ids": ids.tolist(), "labels": labels.tolist()}), batch_size=12)

size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **size))  # or .from_pretrained(...)
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["query", "value"]))
embedding = model.get_input_embeddings().weight
frozen = embedding.detach().clone()


def loss():
    model.eval()
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


before = loss()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
callbacks = [FGMCallback(epsilon=0.05), RDropCallback(kl_weight=0.5)]
Trainer(model, loader, optimizer, driver="torch", n_epochs=12, callbacks=callbacks).run()
after = loss()
print(f"loss {before:.3f} -> {after:.3f}; embedding unchanged: {torch.equal(embedding, frozen)}")
