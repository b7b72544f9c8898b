"""
Train in a plain loop with an attack on embeddings, one on weights and two regularizers: `make smoke` runs it where
fastNLP is not installed.
"""

import torch
from torch import nn

from fastnlp_adv import AWP, FGM, VAT, RDrop


def train(method) -> list[float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), nn.Dropout(0.1), nn.Flatten(), nn.Linear(48, 2))
    ids = torch.randint(0, 20, (64, 3))
    batch = {"ids": ids, "labels": (ids[:, 0] < 10).long()}

    def step(batch: dict) -> dict:
        pred = model(batch["ids"])
        return {"loss": nn.functional.cross_entropy(pred, batch["labels"]), "pred": pred}

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    with method.attach(model):
        for _ in range(30):
            if isinstance(method, (FGM, AWP)):
                loss = method.step(lambda: step(batch)["loss"])
            else:
                loss = method(step, batch)["loss"]
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


for method in (FGM(epsilon=0.5), AWP(), RDrop(), VAT()):
    first, *_, last = train(method)
    assert last < 0.5 * first, f"Expected the loss to halve under {type(method).__name__}: {first:.3f} to {last:.3f}."
    print(f"{type(method).__name__}: {first:.3f} to {last:.3f}")
