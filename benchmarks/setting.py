"""How large a benchmark is, and the model and the batch of that size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Setting:
    """The size of a batch and of a model, and where both are."""

    batch: int = 16
    length: int = 32
    vocab: int = 30_000
    hidden: int = 384
    layers: int = 6
    dropout: float = 0.1
    attention: str = "sdpa"
    device: str = "cpu"

    def __str__(self) -> str:
        layers = f"{self.layers} layer{'s' * (self.layers > 1)}"
        return f"{self.batch} x {self.length} tokens, {self.vocab:,} words, {layers} of {self.hidden}"

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def model(self) -> Model:
        """A model with the same weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Model(self).to(self.device).train()

    def samples(self) -> dict[str, Tensor]:
        """One batch without padding."""
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(1, self.vocab, (self.batch, self.length), generator=g)
        return {"input_ids": ids, "labels": torch.randint(0, 2, (self.batch,), generator=g)}


class Model(nn.Module):
    """A BERT that classifies, in the shape of a fastNLP user's model."""

    def __init__(self, setting: Setting):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification  # takes seconds, and is not always needed

        fused = getattr(BertForSequenceClassification, "_supports_sdpa", False)  # from transformers 4.41 on
        config = BertConfig(
            vocab_size=setting.vocab,
            hidden_size=setting.hidden,
            num_hidden_layers=setting.layers,
            num_attention_heads=max(1, setting.hidden // 32),
            intermediate_size=4 * setting.hidden,
            hidden_dropout_prob=setting.dropout,
            attention_probs_dropout_prob=setting.dropout,
            attn_implementation=setting.attention if fused else "eager",
        )
        self.bert = BertForSequenceClassification(config)

    @property
    def embedding(self) -> nn.Embedding:
        return self.bert.get_input_embeddings()

    def train_step(
        self, labels: Tensor, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> dict[str, Tensor]:
        outputs = self.bert(input_ids=input_ids, inputs_embeds=inputs_embeds, labels=labels)
        return {"loss": outputs.loss, "pred": outputs.logits}

    forward = train_step  # what a model inside DistributedDataParallel is called by
