"""Tokenizers made on the spot, models for them, texts, and what attacks on text must keep."""

from __future__ import annotations

import re
import string
import unicodedata

import torch
from hypothesis import strategies as st
from support import bert_config
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

VOCABULARY = (
    "a the film movie was is it and very not great good awful dull story plot acting with "
    "no charm wit bad fine best worst long short really quite almost never ever dark bright clever silly"
)
HAN = "[\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U000323af]"
WORDS = VOCABULARY.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MARKS = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
TEXTS = [
    "the film was very good and the plot is clever",
    "it was not a great movie with no charm",
    "really dull story and awful acting",
    "unwatchable but never silly",
    "good",
    "quite fine the best movie ever almost too short and bright",
    "a dark story with wit",
    "the worst worst worst film",
]
texts_of_all_kinds = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from([*WORDS, "Watching", "[SEP]", "[MASK]", "don't", "cafés", "...", "\u4f60", "GOOD"])).map(
        " ".join
    ),
    st.lists(st.sampled_from(["very", "good", " ", "\n", "-", ","]), max_size=150).map("".join),
)


def word_piece(lowercase=True):
    """Whole words, pieces of words, single letters, and entries that are no words."""
    pieces = [f"##{piece}" for piece in ("ing", "ed", "able", *string.ascii_lowercase)]
    entries = [*SPECIAL, "[unused0]", *pieces, *string.ascii_letters, *string.digits, *".,!?'-()[]", *WORDS, "café"]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)  # transformers before 4.34 does not
    return wrapped(tokenizer, MARKS, model_max_length=48)


def byte_level(add_prefix_space=False):
    # said twice: transformers before 5 puts its own default into the tokenizer that it wraps
    prefix = {"add_prefix_space": add_prefix_space}
    return trained(pre_tokenizers.ByteLevel(**prefix), decoders.ByteLevel(), **prefix)


def trained(pre_tokenizer, decoder, **kwargs):
    """Subwords that begin with a mark where a word begins, by byte pair encoding."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator([*TEXTS, *WORDS, " ".join(WORDS)] * 3, trainer)
    return wrapped(tokenizer, MARKS, model_max_length=48, **kwargs)


def wrapped(tokenizer, marks, **kwargs):
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    templates = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    tokenizer.post_processor = processors.TemplateProcessing(**templates, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks, **kwargs)


def bert_for(tokenizer, seed=0, spread=0.5, **config):
    """A BERT in double precision whose weights are so spread that words matter; in train mode, with dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = bert_config(0.1, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **config)
        config.initializer_range = spread
        return BertForSequenceClassification(config).double().train()


class Bag(nn.Module):
    """The mean over the rows of all real tokens is the logits."""

    def __init__(self, tokenizer, rows):
        super().__init__()
        self.embedding = nn.Embedding(len(tokenizer), 2).double()
        with torch.no_grad():
            self.embedding.weight.zero_()
            for word, row in rows.items():
                self.embedding.weight[tokenizer.convert_tokens_to_ids(word)] = torch.tensor(row).double()

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        real = attention_mask.unsqueeze(-1)
        return (self.embedding(input_ids) * real).sum(1) / real.sum(1)


def ask(model, tokenizer, text, label=0, **kwargs):
    """What the model says of one text, from scratch: its loss and its prediction."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        batch = tokenizer(text, return_tensors="pt", truncation=True, **kwargs)
        logits = model(**batch)
    logits = logits if isinstance(logits, torch.Tensor) else logits.logits
    for module, mode in modes:
        module.training = mode
    return float(cross_entropy(logits, torch.tensor([label]))), int(logits.argmax())


def right_labels(model, tokenizer, texts, **kwargs):
    return [ask(model, tokenizer, text, **kwargs)[1] for text in texts]


def gradients(model, tokenizer, text, label):
    """The tokens' ids, and the gradients of the loss at the rows that are looked up, through `inputs_embeds`."""
    batch = tokenizer(text, return_tensors="pt", truncation=True)
    ids = batch.pop("input_ids")
    embedded = model.get_input_embeddings().weight.detach()[ids].requires_grad_()
    model.eval()
    loss = cross_entropy(model(inputs_embeds=embedded, **batch).logits, torch.tensor([label]))
    (g,) = torch.autograd.grad(loss, embedded)
    model.train()
    return ids[0].tolist(), g[0]


def changed_words(before, after):
    """The words that differ, without the punctuation around them. All else must be the same."""
    old, new = re.split(r"(\s+)", before), re.split(r"(\s+)", after)
    assert len(old) == len(new)
    found = []
    for a, b in zip(old, new, strict=True):
        if a != b:
            left = next(i for i, c in enumerate(a) if unicodedata.category(c)[0] not in "PS")
            right = next(i for i, c in enumerate(reversed(a)) if unicodedata.category(c)[0] not in "PS")
            assert b.startswith(a[:left]) and b.endswith(a[len(a) - right :])
            found.append((a[left : len(a) - right], b[left : len(b) - right]))
    return found


def remade(each):
    """The attacked text, from the original and the changes that are reported."""
    text = each.original
    for start, (before, after) in reversed(list(zip(each.starts, each.changes, strict=True))):
        assert text[start:].startswith(before)
        text = text[:start] + after + text[start + len(before) :]
    assert len(each.starts) == len(each.changes)
    return text


def distance(a, b):
    """Of Damerau and Levenshtein: the least number of insertions, deletions, replacements and swaps."""
    d = {(i, 0): i for i in range(len(a) + 1)}
    d.update({(0, j): j for j in range(len(b) + 1)})
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


def assert_honest(results, texts, labels, model, tokenizer, limit, **kwargs):
    """What is reported is what the model says, no more is changed than allowed, and no loss fell."""
    assert [each.original for each in results] == list(texts)
    for each, label in zip(results, labels, strict=True):
        loss, prediction = ask(model, tokenizer, each.original, label, **kwargs)
        attacked_loss, attacked_prediction = ask(model, tokenizer, each.text, label, **kwargs)
        assert (each.label, each.was_right) == (label, prediction == label)
        assert each.prediction == attacked_prediction
        assert attacked_loss >= loss
        assert each.fooled == (prediction == label != attacked_prediction)
        assert each.not_attacked == (prediction == label and each.tried == 0)
        assert each.robust == (prediction == label == attacked_prediction and each.tried > 0)
        assert remade(each) == each.text
        if not re.search(HAN, each.original):
            assert list(each.changes) == changed_words(each.original, each.text)
        assert len(each.changes) <= limit
        assert (each.text != each.original) == bool(each.changes) == (attacked_loss > loss)
        if not each.was_right:
            assert (each.text, each.queries) == (each.original, 1)


class Recorder:
    """A step that notes what the model is asked, and in which mode, and may fail at a call."""

    def __init__(self, model, fails_at=None):
        self.model, self.fails_at = model, fails_at
        self.batches, self.modes, self.with_gradients = [], set(), []

    def __call__(self, batch):
        if len(self.batches) == self.fails_at:
            raise KeyError("step")
        self.batches.append(batch)
        self.modes.add(self.model.training)
        self.with_gradients.append(torch.is_grad_enabled())
        return self.model(**batch)

    def asked(self, call):
        """The ids of a call, without padding."""
        batch = self.batches[call]
        return [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
