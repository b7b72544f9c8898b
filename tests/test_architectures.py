"""
FGM on small models of many families of transformers, against perturbations that the test adds to each lookup by hooks
of its own. There are fewer examples than positions, and as many.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers
from references import add, assert_same, differ, gradients
from torch import nn

from fastnlp_adv import FGM

EPSILON, VOCAB = 0.7, 60
IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**IDS, **WIDTH, **QUIET, "max_position_embeddings": 32, "type_vocab_size": 2}
LLAMA = {**IDS, **WIDTH, "num_key_value_heads": 1, "max_position_embeddings": 32}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
LAYERS = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32, "dropout": 0.0}
BART = {**IDS, **HEADS, **LAYERS, "decoder_start_token_id": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
DISTILBERT = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}
NO_DISTILBERT_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
FUNNEL = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1]}
NO_FUNNEL_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
PINYIN = {"pronunciation_vocab_size": VOCAB, "pronunciation_embed_dim": 8}
GPT2 = {**IDS, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
XLNET = {**IDS, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "dropout": 0.0, "summary_last_dropout": 0.0}
NO_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

#: a model of transformers, and its configuration
CLASSIFIERS = {
    "Bert": BERT,
    "Electra": {**BERT, "embedding_size": 8},
    "Albert": {**BERT, "embedding_size": 8, "classifier_dropout_prob": 0.0},
    "DistilBert": {**IDS, **DISTILBERT, **NO_DISTILBERT_DROPOUT},
    "DebertaV2": {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "MPNet": BERT,
    "Longformer": {**BERT, "attention_window": 4},
    "ModernBert": {**IDS, **WIDTH, "attn_implementation": "eager", "reference_compile": False},
    "FNet": BERT,
    "Funnel": {**IDS, **FUNNEL, **NO_FUNNEL_DROPOUT},
    "RoCBert": {**BERT, **PINYIN, "shape_vocab_size": VOCAB, "shape_embed_dim": 8},
    "Esm": {**BERT, "mask_token_id": 3, "token_dropout": False},
    "XLNet": XLNET,
    "GPT2": {**GPT2, **NO_GPT2_DROPOUT},
    "OPT": {**IDS, **WIDTH, "ffn_dim": 32, "word_embed_proj_dim": 16, "max_position_embeddings": 32, "dropout": 0.0},
    "Bloom": {**IDS, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "Llama": LLAMA,
    "BioGpt": {**BERT, "scale_embedding": True, "layerdrop": 0.0},
    "Gemma": {**LLAMA, "head_dim": 8},
    "T5": {**IDS, **T5, "decoder_start_token_id": 0},
    "Bart": BART,
    "PLBart": {**BART, "scale_embedding": True, "attention_dropout": 0.0},
    "Canine": {**BERT, "num_hash_functions": 2, "num_hash_buckets": 32, "downsampling_rate": 2},
}


def build(name):
    """A model of a family, without dropout; skipped where this version of transformers lacks it."""
    cls = getattr(transformers, f"{name}ForSequenceClassification", None)
    if cls is None:
        pytest.skip(f"this transformers has no {name}")
    config = cls.config_class(**CLASSIFIERS[name], num_labels=3)
    torch.manual_seed(0)
    try:
        return cls(config).train()
    except AttributeError:
        if name != "Funnel":
            raise
        pytest.skip("this transformers builds no Funnel with padding")


def batch_of(examples, positions):
    """Sentences of random tokens, each with an end and padding; and a label for each."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (examples, positions), generator=g)
    for row, length in enumerate(torch.randint(3, positions + 1, (examples,), generator=g).tolist()):
        ids[row, length - 1], ids[row, length:] = 2, 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.arange(examples) % 3}


def in_double(model, loss_of):
    """In double precision, but for models that make masks of single precision: their loss is infinite, or none."""
    try:
        if loss_of(model.double()).isfinite():
            return model
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
    return model.float()


def tables_of(model):
    """The weights of the input embeddings, each with the modules that look it up."""
    if type(model).__name__.startswith("Canine"):
        weights = [m.weight for n, m in model.named_modules() if "HashBucketCodepointEmbedder" in n]
    else:
        weights = [model.get_input_embeddings().weight]
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return {w: [m for m in embeddings if m.weight is w] for w in weights}


class Perturbed:
    """Adds a tensor to each lookup of the tables of a model, as if the rows were longer by it; zeros at first."""

    def __init__(self, model):
        self.tables = tables_of(model)
        #: for each lookup, the table, its ids, and what is added to its rows
        self.lookups, self.values = [], None
        self.handles = [m.register_forward_hook(self.add) for modules in self.tables.values() for m in modules]

    def add(self, module, args, output):
        (ids,) = args
        rows = module.weight.detach()[ids]
        scale = output.detach().norm() / rows.norm()
        value = torch.zeros_like(rows) if self.values is None else self.values[len(self.lookups)]
        self.lookups.append((module, ids, value.requires_grad_()))
        return output + scale * value

    def gradients_of(self, loss_of, model):
        """Run the model; return the gradients at the lookups."""
        self.lookups = []
        loss = loss_of(model)
        return torch.autograd.grad(loss, [value for _, _, value in self.lookups])


def real_of(module, ids, batch):
    """True at the positions of a lookup that are perturbed."""
    if module.padding_idx is not None:
        return ids != module.padding_idx
    given, mask = batch["input_ids"], batch["attention_mask"] > 0
    if torch.equal(ids, given):
        return mask
    return mask.T if torch.equal(ids, given.T) else torch.ones_like(ids, dtype=torch.bool)


def by_definition(model, loss_of, batch, granularity, examples_in):
    """
    The gradients of the clean and the perturbed loss together.

    :param batch: its attention mask holds where a table has no padding, for the ids of the batch.
    :param examples_in: the dimension of the ids of a lookup that holds the examples.
    """
    model = copy.deepcopy(model)

    def backward():
        model.zero_grad()
        loss_of(model).backward()
        return gradients(model)

    clean = backward()
    hooks = Perturbed(model)
    grads = hooks.gradients_of(loss_of, model)
    if granularity == "vocab":
        totals = {w: torch.zeros_like(w) for w in hooks.tables}
        for (module, ids, _), g in zip(hooks.lookups, grads, strict=True):
            total = totals[module.weight]
            for token, row in zip(ids.flatten().tolist(), g.reshape(-1, g.shape[-1]), strict=True):
                if token != module.padding_idx:
                    total[token] += row
        for handle in hooks.handles:
            handle.remove()
        with torch.no_grad():
            for w, total in totals.items():
                w.add_(EPSILON * total / total.norm())
        return add(clean, backward())
    values = []
    for (module, ids, _), g in zip(hooks.lookups, grads, strict=True):
        g = g * real_of(module, ids, batch).unsqueeze(-1)
        across = -1 if granularity == "token" else (1 - examples_in, 2)
        size = g.norm(dim=across, keepdim=True)
        values.append(torch.where(size > 0, EPSILON * g / size, 0))
    hooks.lookups, hooks.values = [], values
    return add(clean, backward())


@pytest.mark.parametrize(
    ("name", "shape"),
    [*((name, (4, 8)) for name in CLASSIFIERS), *((name, (8, 8)) for name in ("Bert", "XLNet", "Bart"))],
)
def test_fgm(name, shape):
    batch = batch_of(*shape)

    def loss_of(model):
        taken = inspect.signature(model.forward).parameters  # by FNet no mask in some versions
        return model(**{key: field for key, field in batch.items() if key in taken}).loss

    model = in_double(build(name), loss_of)
    loss_of(model).backward()
    plain = gradients(model)
    for granularity in ("vocab", "sequence", "token"):
        model.zero_grad()
        with FGM(model, EPSILON, granularity=granularity) as fgm:
            fgm.step(lambda: loss_of(model))
        found = gradients(model)
        expected = by_definition(model, loss_of, batch, granularity, examples_in=int(name == "XLNet"))
        assert_same(found, expected, rtol=1e-9 if loss_of(model).dtype == torch.float64 else 1e-3)
        assert differ(found, add(plain, plain)) > 1e-3


def test_a_table_that_is_no_embedding_of_torch_is_refused_by_name():
    """I-BERT quantizes what it looks up."""
    model = transformers.IBertForSequenceClassification(transformers.IBertConfig(**BERT))
    with pytest.raises(
        ValueError, match=r"an nn.Embedding, .* its parameters are `ibert.embeddings.word_embeddings.weight`"
    ):
        FGM(model)
