"""
Sequence to sequence with T5: the attack perturbs the shared embedding, in the encoder and in the decoder.
"""

import torch
from fastNLP import DataSet, Trainer, prepare_torch_dataloader
from transformers import T5Config, T5ForConditionalGeneration

from fastnlp_adv import FGMCallback, RDropCallback, compat

compat.repair()
torch.manual_seed(0)

source = torch.randint(3, 20, (48, 5))
target = torch.cat([source.flip(1), torch.ones(48, 1, dtype=torch.long)], 1)  # backwards, and the end of the sequence
loader = prepare_torch_dataloader(DataSet({"input_ids": source.tolist(), "labels": target.tolist()}), batch_size=8)

size = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2, "feed_forward_proj": "relu"}
model = T5ForConditionalGeneration(T5Config(vocab_size=24, decoder_start_token_id=0, **size))  # or from_pretrained


def loss():
    model.eval()
    with torch.no_grad():
        return float(model(input_ids=source, labels=target).loss)


before = loss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
# R-Drop leaves out positions with the label -100; `two_pass`, since outputs such as caches cannot be halved.
callbacks = [FGMCallback(epsilon=0.5), RDropCallback(kl_weight=0.5, mode="two_pass")]
Trainer(model, loader, optimizer, driver="torch", n_epochs=8, callbacks=callbacks).run()
after = loss()
print(f"loss {before:.3f} -> {after:.3f}")
