"""Words and characters, edits, homophones, and a vocabulary as a tokenizer."""

from __future__ import annotations

import importlib.util
import re
import unicodedata

import pytest
from fastNLP import Vocabulary
from hypothesis import given
from hypothesis import strategies as st

from fastnlp_adv.robustness import VocabularyTokenizer, word_spans
from fastnlp_adv.robustness.texts import is_spaceless
from fastnlp_adv.robustness.typos import homophones

needs_pypinyin = pytest.mark.skipif(importlib.util.find_spec("pypinyin") is None, reason="pypinyin is not installed")


def words(text):
    return [text[a:b] for a, b in word_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("这部film很好", ["这", "部", "film", "很", "好"]),
        ("很好，不错！", ["很", "好", "不", "错"]),
        ("用了iPhone-6s，（很）好", ["用", "了", "iPhone-6s", "很", "好"]),
        ("カタカナひらがな", list("カタカナひらがな")),
        ("二〇〇八年", list("二〇〇八年")),
        ("한국어 좋다", ["한국어", "좋다"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        ("……", []),
        ("", []),
    ],
)
def test_words_by_script(text, expected):
    assert words(text) == expected


@given(st.text())
def test_a_character_is_of_a_script_without_spaces_by_its_name(text):
    """Only of characters that Unicode names; blocks also hold places that are not taken yet."""
    for character in text:
        name = unicodedata.name(character, "")
        if name.startswith(("LATIN", "GREEK", "CYRILLIC", "DIGIT", "HANGUL", "THAI")):
            assert not is_spaceless(character), name
        if re.match("CJK (UNIFIED|COMPATIBILITY) IDEOGRAPH|(HIRAGANA|KATAKANA) LETTER", name):
            assert is_spaceless(character), name


@needs_pypinyin
def test_homophones_are_common_characters_of_the_same_pinyin_there():
    from pypinyin import lazy_pinyin

    found = homophones("银行很好", 1)
    assert {"航", "杭"} <= set(found) and not {"行", "形", "型"} & set(found)
    assert {"形", "型"} <= set(homophones("行为", 0)) and "航" not in homophones("行为", 0)
    for text, at in [("她是老师", 0), ("她是老师", 1), ("女人", 0), ("绿色", 0)]:
        for other in homophones(text, at):
            assert lazy_pinyin(other) == lazy_pinyin(text[at]) and other != text[at]
            assert other.encode("gb2312")[0] <= 0xD7  # level 1
    assert {"他", "它"} <= set(homophones("她是老师", 0))
    assert "媽" in homophones("這匹馬", 2) and "妈" not in homophones("這匹馬", 2)
    assert homophones("ab，", 1) == homophones("カ", 0) == []
    assert homophones("良い映画", 0) == []  # which Japanese reads otherwise


def test_a_vocabulary_reads_as_its_user_does():
    vocabulary = Vocabulary()
    vocabulary.add_word_lst(list("很好看的书"))
    tokenizer = VocabularyTokenizer(vocabulary, max_length=4)
    texts = ["好书", "很难看的书", ""]
    read = tokenizer(texts, padding=True, truncation=True, return_offsets_mapping=True, return_tensors="pt")
    for row, text in enumerate(texts[:2]):
        mine = [vocabulary.to_index(character) for character in text][:4]
        assert read["input_ids"][row].tolist() == mine + [vocabulary.padding_idx] * (4 - len(mine))
        assert read["attention_mask"][row].tolist() == [1] * len(mine) + [0] * (4 - len(mine))
        assert read["offset_mapping"][row, : len(mine)].tolist() == [[i, i + 1] for i in range(len(mine))]
    assert read["input_ids"][2].tolist() == [vocabulary.unknown_idx] + 3 * [vocabulary.padding_idx]
    assert tokenizer.tokenize("好电影") == ["好", "<unk>", "<unk>"]
    assert tokenizer("好书")["input_ids"] == [vocabulary.to_index("好"), vocabulary.to_index("书")]


def test_tokens_stand_where_the_text_has_them_whatever_splits_it():
    ids = {"<pad>": 0, "<unk>": 1, "good": 2, "book": 3}
    tokenizer = VocabularyTokenizer(ids, lambda text: text.lower().split(), padding="<pad>", unknown="<unk>")
    read = tokenizer(["A  Good book"], return_offsets_mapping=True)
    assert read["input_ids"] == [[1, 2, 3]]
    assert read["offset_mapping"] == [[(0, 1), (3, 7), (8, 12)]]
    with pytest.raises(ValueError, match="stretches of the text in their order, but got 'x' of 'good'"):
        VocabularyTokenizer(ids, lambda text: ["x"], padding="<pad>", unknown="<unk>")(["good"])


@pytest.mark.parametrize(
    ("vocabulary", "arguments", "message"),
    [
        ([], {}, "`vocabulary` to be a Vocabulary of fastNLP or a mapping"),
        ({"a": 0}, {}, "`padding` to be an entry of the vocabulary, but got None"),
        ({"a": 0}, {"padding": "a", "unknown": "b"}, "`unknown` to be an entry of the vocabulary, but got 'b'"),
        (Vocabulary(padding=None), {}, "`padding`"),
        ({"a": 0}, {"split": "list"}, "`split` to be a function"),
        ({"a": 0}, {"max_length": 0}, "`max_length`"),
    ],
)
def test_what_a_vocabulary_tokenizer_refuses(vocabulary, arguments, message):
    with pytest.raises(ValueError, match=message):
        VocabularyTokenizer(vocabulary, **arguments)
