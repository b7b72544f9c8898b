"""Tied heads, LoRA and rows that PEFT trains: the same as perturbing the weights of the word embeddings."""

from __future__ import annotations

import copy
import inspect

import peft
import pytest
import torch
import transformers
from references import ATTACKS, IDS, assert_same, bert, bert_loss, on_weights, step
from support import VOCAB

from fastnlp_adv import FGM

GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}


def test_a_tied_language_model_head_is_left_alone():
    """Tied and untied heads start from the same numbers; only what is looked up moves, so what they predict agrees."""
    found = []
    for tied in (True, False):
        config = transformers.GPT2Config(**GPT2, tie_word_embeddings=tied)
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).double()
        table = model.transformer.wte
        with torch.no_grad():
            model.lm_head.weight.copy_(table.weight.clone())
        assert (model.lm_head.weight is table.weight) == tied
        with FGM(model, 0.7).attack(closure=lambda model=model: model(input_ids=IDS, labels=IDS).loss):
            delta = table(IDS) - table.weight[IDS]
            logits = model(input_ids=IDS).logits
        found.append((delta.detach(), logits.detach()))
    torch.testing.assert_close(found[0], found[1])


def lora(config):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, init_lora_weights=False, lora_dropout=0.0, **config)
    return peft.get_peft_model(bert(), config).double()


@ATTACKS
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["query", "word_embeddings"]},
        {"target_modules": ["query"], "modules_to_save": ["classifier"]},
    ],
    ids=["embedding too", "head saved"],
)
def test_lora_attacks_the_frozen_embedding(build, reference, config):
    model = lora(config)
    weight = next(n for n, _ in model.named_parameters() if "word_embeddings" in n and "lora" not in n)
    attack = build(model)
    assert [tap.name for tap in attack.taps] == [weight]
    found = step(attack, model, bert_loss)
    assert_same(found, on_weights(model, bert_loss, [weight], **reference))
    assert found[weight] is None


def test_an_embedding_of_which_peft_trains_a_copy():
    """`modules_to_save` keeps the original beside its trained copy, and looks up the copy."""
    model = lora({"target_modules": ["query"], "modules_to_save": ["word_embeddings"]})
    found = step(FGM(model, 0.7), model, bert_loss)
    (weight,) = [n for n, _ in model.named_parameters() if "word_embeddings.modules_to_save" in n]
    assert_same(found, on_weights(model, bert_loss, [weight], steps=[0.7]))
    named = FGM(model, emb_name="word_embeddings.original_module")
    with pytest.raises(RuntimeError, match="name the embedding that is looked up with `emb_name`"):
        named.step(lambda: bert_loss(model))


#: of these tokens PEFT trains copies of the rows, which it looks up in the place of the table's
TOKENS = sorted({1, 2, *IDS[2, :3].tolist()})


def with_plain_table(model):
    """The same function of the ids, with one table that holds the trained rows."""
    model = copy.deepcopy(model)
    wrapper = model.get_input_embeddings()
    table = torch.nn.Embedding.from_pretrained(wrapper.weight.detach().clone(), freeze=False, padding_idx=0)
    model.base_model.model.bert.embeddings.word_embeddings = table
    return model


@pytest.mark.skipif(
    "trainable_token_indices" not in inspect.signature(peft.LoraConfig).parameters,
    reason="PEFT trains single rows from 0.15 on",
)
@ATTACKS
def test_rows_that_peft_trains_are_attacked_with_the_rest(build, reference):
    model = lora({"target_modules": ["query"], "trainable_token_indices": {"word_embeddings": TOKENS}})
    for name, param in model.named_parameters():
        if "trainable_tokens_delta" in name:
            param.data.normal_()
    plain = with_plain_table(model)
    torch.testing.assert_close(bert_loss(model), bert_loss(plain))
    found = step(build(model), model, bert_loss)
    (table,) = [n for n, _ in plain.named_parameters() if "word_embeddings" in n]
    expected = on_weights(plain, bert_loss, [table], **reference)
    (delta,) = [n for n in found if "trainable_tokens_delta" in n]
    rows = expected.pop(table)[TOKENS]
    assert rows.norm() > 1e-3
    assert_same({name: found[name] for name in [delta, *expected]}, {delta: rows, **expected})
