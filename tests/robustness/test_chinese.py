"""The attacks on Chinese, mixed and English text, on a vocabulary of characters and on WordPiece."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from fastNLP import Vocabulary
from fastNLP.models.torch import CNNText
from texts import MARKS, SPECIAL, Recorder, assert_honest, bert_for, distance, right_labels, wrapped
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn

from fastnlp_adv.robustness import HotFlip, Typos, VocabularyTokenizer
from fastnlp_adv.robustness.typos import SLIPS

LETTER_SLIPS = SLIPS[:4]  # those that need no other package
CHINESE = ["这本书很好看", "房间太小，服务也不好！", "屏幕很好 性价比高", "物流慢", "我不太喜欢这家酒店的早餐。"]
MIXED = ["这个film很好看", "装了windows系统，really太慢", "good书 bad酒店", "very好 quite不好"]
ENGLISH = ["really good film", "quite awful service, never again"]
TEXTS = [*CHINESE, *MIXED, *ENGLISH]
WORDS = ["film", "windows", "really", "very", "good", "bad", "quite", "awful", "service", "never", "again"]
CHARACTERS = sorted({c for text in TEXTS for c in text if c.isalpha() and ord(c) > 255} | set("她他它马妈吗形航杭"))
needs_pypinyin = pytest.mark.skipif(importlib.util.find_spec("pypinyin") is None, reason="pypinyin is not installed")


@pytest.fixture(scope="module")
def word_piece(tmp_path_factory):
    """As that of bert-base-chinese: from its kind of vocabulary file, characters apart, and pieces that never occur."""
    pieces = [*(f"##{c}" for c in CHARACTERS), *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"，。！,.!"]
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    file.write_text(
        "\n".join([*SPECIAL, *CHARACTERS, *WORDS, *"abcdefghijklmnopqrstuvwxyz", *pieces]), encoding="utf-8"
    )
    tokenizer = Tokenizer(models.WordPiece.from_file(str(file), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return wrapped(tokenizer, MARKS, model_max_length=48)


class OnCharacters(nn.Module):
    """fastNLP's CNNText with the names of the attacks."""

    def __init__(self, vocabulary, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # a zero row for padding, so that a text alone and in a batch are predicted the same
            rows = nn.Embedding(len(vocabulary), 16, padding_idx=vocabulary.padding_idx)
            self.cnn = CNNText(rows, 3, kernel_nums=(12, 12), kernel_sizes=(1, 3)).double()

    def forward(self, input_ids, attention_mask):
        return self.cnn(input_ids, attention_mask.sum(1))["pred"]


VOCABULARY = Vocabulary()
VOCABULARY.add_word_lst([*"".join(TEXTS), *CHARACTERS])
CHARS = VocabularyTokenizer(VOCABULARY)


@pytest.fixture(params=["characters", "word_piece"])
def pair(request, word_piece):
    """A model and its tokenizer."""
    if request.param == "characters":
        return OnCharacters(VOCABULARY), CHARS
    return bert_for(word_piece), word_piece


@pytest.mark.parametrize("slips", [LETTER_SLIPS, *([each] for each in LETTER_SLIPS)], ids="+".join)
def test_typos_swap_drop_and_double_characters_and_misspell_words(pair, slips):
    model, tokenizer = pair
    labels = right_labels(model, tokenizer, TEXTS)
    found = Typos(model, tokenizer, max_typos=3, slips=slips).attack(TEXTS, labels)
    assert_honest(found, TEXTS, labels, model, tokenizer, 3)
    for each in found:
        assert distance(each.original, each.text) == len(each.changes)
        for before, after in each.changes:
            assert kind(before, after) in slips
    assert any(each.changes for each in found[-len(ENGLISH) :])
    on_chinese = found[: len(CHINESE)]
    assert [each.not_attacked for each in on_chinese] == [slips == ["key"]] * len(CHINESE)
    assert any(each.changes for each in on_chinese) == (slips != ["key"])


def kind(before, after):
    """The slip that makes the one of the other, by the definitions."""
    if sorted(before) == sorted(after):
        return "swap"
    if len(after) < len(before):
        return "drop"
    return "double" if len(after) > len(before) else "homophone" if "\u4e00" <= before[0] <= "\u9fff" else "key"


def test_a_text_on_which_nothing_can_be_tried_is_not_robust(pair):
    model, tokenizer = pair
    texts = ["……！？", "123，456", "𝕏𝕏", "这"]
    labels = right_labels(model, tokenizer, texts)
    for attack in (HotFlip(model, tokenizer), Typos(model, tokenizer, slips=["swap", "drop"])):
        found = attack.attack(texts, labels)
        assert_honest(found, texts, labels, model, tokenizer, 3)
        assert [each.not_attacked for each in found[:3]] == [True] * 3
        assert not any(each.robust or each.fooled for each in found[:3])
    assert found[3].not_attacked  # a character alone has nothing to swap with, and is not left out
    assert not HotFlip(model, tokenizer).attack(texts, labels)[3].not_attacked


@needs_pypinyin
def test_homophones_take_the_place_of_characters(pair):
    from pypinyin import Style, lazy_pinyin, pinyin

    model, tokenizer = pair
    texts = [*CHINESE, *MIXED]
    labels = right_labels(model, tokenizer, texts)
    found = Typos(model, tokenizer, max_typos=3, slips=["homophone"], candidates=200).attack(texts, labels)
    assert_honest(found, texts, labels, model, tokenizer, 3)
    for each in found:
        assert distance(each.original, each.text) == len(each.changes)
        for before, after in each.changes:
            assert before != after and len(before) == len(after) == 1
            readings = pinyin(before, heteronym=True, style=Style.NORMAL)[0]
            assert lazy_pinyin(after)[0] in readings
    assert any(each.changes for each in found)


def test_without_pypinyin_homophones_are_refused_before_the_model_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypinyin", None)
    step = Recorder(OnCharacters(VOCABULARY))
    attack = Typos(step.model, CHARS, step=step)
    with pytest.raises(ImportError, match=r"pip install 'fastnlp_adv\[chinese\]'`, or leave .homophone. out"):
        attack.attack(["good", "很好"], [0, 0])
    assert not step.batches
    attack.attack(["really good", "とても良い"], [0, 0])
    Typos(step.model, CHARS, step=step, slips=LETTER_SLIPS).attack(["很好"], [0])
    assert step.batches
