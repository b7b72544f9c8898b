"""The methods on transformers of several families, given to the Trainer as they are, and on LoRA."""

import copy
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import CLASSES, VOCAB, bert_config, build, distance, textbook_fgm, weights
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from fastnlp_adv import FGMCallback, PGDCallback, RDropCallback

LENGTH, PAD = 7, 1
ENDS = {"bos_token_id": 0, "eos_token_id": 2}
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
    "pad_token_id": PAD,
}
DISTIL = {"vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": CLASSES}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": PAD, **ENDS}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": PAD,
    "eos_token_id": 2,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}


def fields(labels):
    """A batch for transformers; each text ends in one token 2, BART's end of sentence, and padding."""
    ids = torch.randint(3, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((7, 5, 6, 4)):
        ids[row, length - 1], ids[row, length:] = 2, PAD
    shape = (4, LENGTH) if labels == "tokens" else (4,)
    target = torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(1))
    if labels == "text":
        target = ids
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": target}


#: name: (how to make it, what its labels are, part of the name of its input embedding)
TRANSFORMERS = {
    "bert": (lambda: BertForSequenceClassification(bert_config()), "classes", "word_embeddings"),
    "bert-tokens": (lambda: BertForTokenClassification(bert_config()), "tokens", "word_embeddings"),
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**BERT)), "classes", "word_embeddings"),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL)),
        "classes",
        "word_embeddings",
    ),
    "gpt2-classifier": (
        lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, num_labels=CLASSES)),
        "classes",
        "wte",
    ),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2, tie_word_embeddings=False)), "text", "wte"),
    "bart-classifier": (
        lambda: BartForSequenceClassification(BartConfig(**BART, num_labels=CLASSES)),
        "classes",
        "shared",
    ),
    "t5-classifier": (lambda: T5ForSequenceClassification(T5Config(**T5, num_labels=CLASSES)), "classes", "shared"),
}
TIED = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**BART)),
    "bart-scaled": lambda: BartForConditionalGeneration(BartConfig(**BART, scale_embedding=True)),
}


def make(factory):
    torch.manual_seed(0)
    return factory()


def train(model, batch, callbacks=None, steps=3, **kwargs):
    """A few steps on one batch, from the same random state each time."""
    data = DataLoader([batch] * steps, batch_size=1, collate_fn=lambda rows: rows[0])
    trainer = build(model, callbacks, train_dataloader=data, n_batches=-1, n_epochs=1, **kwargs)
    torch.manual_seed(1)
    trainer.run()
    assert torch.isfinite(weights(model)).all()
    return trainer


CASES = pytest.mark.parametrize("factory, labels, name", TRANSFORMERS.values(), ids=TRANSFORMERS.keys())


@CASES
def test_fgm_on_transformers_equals_the_textbook(factory, labels, name):
    ours, theirs, plain = make(factory), make(factory), make(factory)
    train(ours, fields(labels), [FGMCallback()])
    train(theirs, fields(labels), batch_step_fn=textbook_fgm(theirs, name=name))
    train(plain, fields(labels))
    assert distance(ours, theirs) < 1e-5
    assert distance(ours, plain) > 1e-4


EVERY = [(factory, labels) for factory, labels, _ in TRANSFORMERS.values()] + [
    (factory, "text") for factory in TIED.values()
]


@pytest.mark.parametrize("factory, labels", EVERY, ids=[*TRANSFORMERS, *(f"{name}-tied" for name in TIED)])
@pytest.mark.parametrize("method", [PGDCallback, RDropCallback, partial(RDropCallback, mode="two_pass")])
def test_pgd_and_rdrop_train_transformers(factory, labels, method):
    model, plain = make(factory), make(factory)
    trainer = train(model, fields(labels), [method()])
    train(plain, fields(labels))
    assert all(torch.isfinite(value) for value in trainer.state["adv"].values())
    assert distance(model, plain) > 1e-5


def shifted(labels, start):
    return torch.cat([torch.full((len(labels), 1), start), labels[:, :-1]], dim=1)


@pytest.mark.parametrize("factory", TIED.values(), ids=TIED.keys())
def test_tied_output_layer_is_left_alone(factory):
    ours, theirs = make(factory).eval(), make(factory).eval()
    batch, weight = fields("text"), theirs.get_input_embeddings().weight
    assert theirs.get_output_embeddings().weight is weight
    scale = theirs.config.d_model**0.5 if getattr(theirs.config, "scale_embedding", False) else 1.0
    padding = theirs.get_input_embeddings().padding_idx
    ids = {"inputs_embeds": batch["input_ids"]}
    if theirs.config.is_encoder_decoder:
        ids["decoder_inputs_embeds"] = shifted(batch["labels"], theirs.config.decoder_start_token_id)

    def loss_at(moves):
        look_up = partial(nn.functional.embedding, padding_idx=padding)
        embeds = {key: (look_up(value, weight) + look_up(value, moves)) * scale for key, value in ids.items()}
        return theirs(**embeds, attention_mask=batch["attention_mask"], labels=batch["labels"]).loss

    moves = torch.zeros_like(weight, requires_grad=True)
    (grad,) = torch.autograd.grad(loss_at(moves), moves)
    loss = theirs(**batch).loss + loss_at(grad / grad.norm())
    loss.backward()
    with torch.no_grad():
        for param in theirs.parameters():
            param.sub_(param.grad, alpha=0.05)

    class Evaluated(nn.Module):
        """Without dropout in training, as the reference."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def train_step(self, input_ids, attention_mask, labels):
            self.model.eval()
            return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    train(Evaluated(ours), batch, [FGMCallback()], steps=1)
    assert distance(ours, theirs) < 1e-5


def lora(targets):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, init_lora_weights="gaussian")
    return get_peft_model(make(lambda: BertForSequenceClassification(bert_config())), config)


def test_fgm_on_lora_equals_the_textbook_with_the_frozen_embedding_unfrozen():
    torch.manual_seed(0)
    ours = lora(["query", "value"])
    theirs = copy.deepcopy(ours)
    start = copy.deepcopy(ours)
    train(ours, fields("classes"), [FGMCallback()], optimizers=torch.optim.SGD(trainable(ours), lr=0.05))
    optimizer = torch.optim.SGD(trainable(theirs), lr=0.05)
    embedding = theirs.get_input_embeddings().weight
    assert not embedding.requires_grad
    embedding.requires_grad_(True)
    train(theirs, fields("classes"), batch_step_fn=clearing(theirs, embedding), optimizers=optimizer)
    assert distance(ours, theirs) < 1e-5
    assert distance(ours, start) > 1e-4
    assert not ours.get_input_embeddings().weight.requires_grad


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def clearing(model, embedding):
    """The textbook's step, for an embedding that no optimizer clears the gradient of."""
    step = textbook_fgm(model)

    def batch_step_fn(trainer, batch):
        embedding.grad = None
        step(trainer, batch)

    return batch_step_fn


@pytest.mark.parametrize("targets", [["query", "value"], ["word_embeddings"]], ids=["attention", "embedding"])
@pytest.mark.parametrize("method", [FGMCallback, PGDCallback, RDropCallback])
def test_methods_train_lora(method, targets):
    model = lora(targets)
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    optimizer = torch.optim.SGD(trainable(model), lr=0.05)
    trainer = train(model, fields("classes"), [method()], optimizers=optimizer)
    assert all(torch.isfinite(value) for value in trainer.state["adv"].values())
    assert all(
        torch.equal(p, q) for p, q in zip(frozen, (p for p in model.parameters() if not p.requires_grad), strict=True)
    )
