"""
A causal language model with FGM: the attack does not change the output layer, which is tied to the embedding.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from transformers import GPT2Config, GPT2LMHeadModel

from fastnlp_adv import FGMCallback, compat

compat.repair()
torch.manual_seed(0)

start = torch.randint(0, 16, (64, 1))
ids = (start + torch.arange(10)) % 16  # counting
loader = prepare_torch_dataloader(DataSet({"input_ids": ids.tolist(), "labels": ids.tolist()}), batch_size=8)

model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=32, n_layer=1, n_head=2))


def loss():
    model.eval()
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


before = loss()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
Trainer(model, loader, optimizer, driver="torch", n_epochs=8, callbacks=[FGMCallback(epsilon=0.05)]).run()
after = loss()
print(f"loss {before:.3f} -> {after:.3f}")
