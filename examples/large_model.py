"""
Train a model that is sharded over processes with PGD in fastNLP's Trainer: each process holds a part of every
weight. This takes seconds on a CPU:

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 examples/large_model.py

Needs torch 2.6 or later. On GPUs the same script uses NCCL and one device per process.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from fastNLP import Accuracy, DataSet, Trainer, prepare_torch_dataloader
from launch import finish
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from fastnlp_adv import PGDCallback, compat

VOCAB, LENGTH = 100, 8


class Classifier(nn.Module):
    """A small transformer. fastNLP calls ``forward`` of a wrapped model."""

    def __init__(self, width: int = 32, layers: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, words: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embedding(words)
        for layer in self.layers:
            x = layer(x)
        pred = self.head(x.mean(1))
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred, "target": labels}


def dataset(size: int, seed: int) -> DataSet:
    """Sentences that are positive where most words are from the first half of the vocabulary."""
    words = torch.randint(0, VOCAB, (size, LENGTH), generator=torch.Generator().manual_seed(seed))
    return DataSet({"words": words.tolist(), "labels": ((words < VOCAB // 2).sum(1) > LENGTH // 2).long().tolist()})


def main() -> None:
    compat.repair()  # also repairs fastNLP's driver for FullyShardedDataParallel
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    train(device)
    finish()


def train(device: torch.device) -> None:
    torch.manual_seed(0)  # the same weights everywhere, before they are sharded
    model = FullyShardedDataParallel(
        Classifier(),
        auto_wrap_policy=ModuleWrapPolicy({nn.TransformerEncoderLayer}),  # each layer is gathered when it is needed
        device_id=device,
        use_orig_params=True,
    )
    trainer = Trainer(
        model=model,
        driver="torch_fsdp",
        device=None,
        data_device=device,
        train_dataloader=prepare_torch_dataloader(dataset(256, seed=1), batch_size=16, shuffle=True),
        evaluate_dataloaders=prepare_torch_dataloader(dataset(256, seed=2), batch_size=64),
        metrics={"accuracy": Accuracy()},
        optimizers=torch.optim.Adam(model.parameters(), lr=0.005),
        n_epochs=5,
        callbacks=[PGDCallback(steps=2, epsilon=0.5, granularity="sequence")],
        progress_bar=None,
    )
    trainer.run()
    accuracy = trainer.evaluator.run()["acc#accuracy"]
    held = sum(param.numel() for param in model.parameters())
    whole = sum(param.numel() for param in Classifier().parameters())
    print(f"rank {dist.get_rank()}: accuracy {accuracy:.3f}, holds {held} of {whole} numbers", flush=True)


if __name__ == "__main__":
    main()
