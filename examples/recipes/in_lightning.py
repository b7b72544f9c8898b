"""
FGM in Lightning, by manual optimization. Checkpoints hold the state of the attack.
"""

import lightning
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fastnlp_adv import FGM


class FGMModule(lightning.LightningModule):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, accumulation: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.optimizer, self.accumulation = model, optimizer, accumulation
        self.fgm = FGM(epsilon=0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def on_train_start(self) -> None:
        self.fgm.attach(self.model)

    def on_train_end(self) -> None:
        self.fgm.detach()

    def training_step(self, batch: dict, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.fgm.drive(
            lambda each: self.model(**each.of(batch)).loss,
            lambda loss, each: self.manual_backward(loss / self.accumulation),
            batch,
            no_sync=lambda: optimizer.toggle_model(sync_grad=False),  # gradients are reduced in the last pass
            reduces=self.trainer.world_size > 1,
            accumulation_steps=self.accumulation,
        )
        self.log_dict({"loss": loss, "perturbation_norm": self.fgm.perturbation_norm})
        if (batch_idx + 1) % self.accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["fgm"] = self.fgm.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.fgm.load_state_dict(checkpoint["fgm"])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: list, batch_size: int = 8, accumulation: int = 1
) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, **quiet)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
    trainer.fit(FGMModule(model.train(), optimizer, accumulation), loader)


if __name__ == "__main__":
    ids = torch.randint(5, 60, (64, 8))
    data = [{"input_ids": row, "labels": (row[0] > 30).long()} for row in ids]
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=64, **size))
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), data, accumulation=2)
