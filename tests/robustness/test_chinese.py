"""The attacks on Chinese, mixed and English text, on a vocabulary of characters and on WordPiece."""

from __future__ import annotations

import importlib.util
import math
import re
import sys

import pytest
import torch
from fastNLP import Vocabulary
from fastNLP.models.torch import CNNText
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import MARKS, SPECIAL, Bag, Recorder, ask, assert_honest, bert_for, distance, remade, right_labels, wrapped
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


def is_han(character):
    return "\u4e00" <= character <= "\u9fff"


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


def character_vocabulary():
    vocabulary = Vocabulary()
    for text in [*TEXTS, "".join(CHARACTERS)]:
        vocabulary.add_word_lst(list(text))
    vocabulary.build_vocab()
    return vocabulary


VOCABULARY = character_vocabulary()
CHARS = VocabularyTokenizer(VOCABULARY)


@pytest.fixture(params=["characters", "word_piece"])
def pair(request, word_piece):
    """A model and its tokenizer."""
    if request.param == "characters":
        return OnCharacters(VOCABULARY), CHARS
    return bert_for(word_piece), word_piece


@pytest.mark.parametrize("seed", [0, 1])
def test_hotflip_flips_characters_and_words_and_says_what_it_did(pair, seed):
    model, tokenizer = pair
    labels = right_labels(model, tokenizer, TEXTS)
    found = HotFlip(model, tokenizer, max_flips=2 + seed).attack(TEXTS, labels)
    assert_honest(found, TEXTS, labels, model, tokenizer, 2 + seed)
    for each in found:
        old, new = (tokenizer(text)["input_ids"] for text in (each.original, each.text))
        assert len(old) == len(new)
        assert sum(a != b for a, b in zip(old, new, strict=True)) == len(each.changes)
        for before, after in each.changes:
            assert before != after
            assert is_han(before[0]) == is_han(after[0])
            assert not is_han(before[0]) or len(before) == len(after) == 1
    attacked = [bool(each.changes) for each in found]
    assert all(attacked[: len(CHINESE)])
    if tokenizer is CHARS:  # words of several tokens cannot be flipped
        assert [each.not_attacked for each in found[-len(ENGLISH) :]] == [True] * len(ENGLISH)
    else:
        changes = [change for each in found[len(CHINESE) : -len(ENGLISH)] for change in each.changes]
        assert {is_han(before[0]) for before, _ in changes} == {True, False}


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
    return "double" if len(after) > len(before) else "homophone" if is_han(before[0]) else "key"


@given(st.lists(st.text(alphabet="妈马ab 好，", max_size=9), min_size=1, max_size=4), st.integers(1, 4))
@example(["", "妈aa，aa "], 1)
@settings(max_examples=40)
def test_typos_do_not_undo_one_another(texts, max_typos):
    """
    Few characters, so that leaving one out here and doubling one there could meet. Losses may tie, too: one text at a
    time, since the rounding of a batch of another shape would make a rise of a tie.
    """
    model = OnCharacters(VOCABULARY, seed=2)
    labels = right_labels(model, CHARS, texts)
    found = Typos(model, CHARS, max_typos=max_typos, slips=LETTER_SLIPS, batch_size=1).attack(texts, labels)
    assert_honest(found, texts, labels, model, CHARS, max_typos)
    for each in found:
        assert distance(each.original, each.text) == len(each.changes)


def chinese_typos(text, at):
    """All changes by one typo of a character, by hand: start, end and what stands there then."""
    found = [(at, at + 1, 2 * text[at])]
    if at + 1 < len(text) and is_han(text[at + 1]):
        found.append((at, at + 2, text[at + 1] + text[at]))
    if any(is_han(c) for c in text[max(0, at - 1) : at] + text[at + 1 : at + 2]):
        found.append((at, at + 1, ""))
    return found


def with_changes(text, changes):
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


@pytest.mark.parametrize("max_typos", [1, 3])
def test_it_is_the_greedy_search_over_the_most_salient_characters(word_piece, max_typos):
    """The definition, one text and one query at a time."""
    model = bert_for(word_piece)
    for text in CHINESE:
        label = ask(model, word_piece, text)[1]
        (loss, prediction), made = ask(model, word_piece, text, label), []
        saliency = saliencies(model, word_piece, text, label)
        for at in sorted(saliency, key=saliency.get, reverse=True):
            if prediction != label or len(made) == max_typos:
                break
            free = [c for c in chinese_typos(text, at) if all(c[1] <= a or b <= c[0] for a, b, _ in made)]
            typos = {with_changes(text, [*made, change]): change for change in free}
            told = [
                (*ask(model, word_piece, typo, label), typo) for typo in typos if distance(text, typo) == len(made) + 1
            ]
            rising = [each for each in told if each[0] > loss]
            if rising:
                loss, prediction, typo = max(rising, key=lambda each: (each[1] != label, each[0]))
                made.append(typos[typo])
        (found,) = Typos(model, word_piece, max_typos=max_typos, slips=LETTER_SLIPS).attack([text], [label])
        assert (found.text, found.prediction) == (with_changes(text, made), prediction)
        assert found.changes


def saliencies(model, tokenizer, text, label):
    batch = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    spans = batch.pop("offset_mapping")[0].tolist()
    ids = batch.pop("input_ids")
    rows = model.get_input_embeddings().weight.detach()[ids].requires_grad_()
    model.eval()
    loss = nn.functional.cross_entropy(model(inputs_embeds=rows, **batch).logits, torch.tensor([label]))
    (g,) = torch.autograd.grad(loss, rows)
    return {a: float(g[0, i].norm()) for i, (a, b) in enumerate(spans) if b > a and is_han(text[a])}


@settings(max_examples=20)
@given(st.text(alphabet=CHARACTERS, min_size=1, max_size=6), st.integers(0, 10**6))
def test_where_the_logits_are_linear_a_single_candidate_is_the_best_flip_of_all_characters(text, seed):
    generator = torch.Generator().manual_seed(seed)
    model = Bag(CHARS, {c: torch.randn(2, generator=generator).tolist() for c in CHARACTERS})
    label = ask(model, CHARS, text)[1]
    loss, _ = ask(model, CHARS, text, label)
    (found,) = HotFlip(model, CHARS, max_flips=1, candidates=1).attack([text], [label])
    tried = [text[:i] + new + text[i + 1 :] for i in range(len(text)) for new in CHARACTERS if new != text[i]]
    best = max(ask(model, CHARS, each, label)[0] for each in tried)
    assert ask(model, CHARS, found.text, label)[0] == pytest.approx(max(best, loss), abs=1e-12)


def test_where_tokens_are_words_of_characters_they_are_flipped_whole():
    words = ["喜欢", "讨厌", "很", "我", "酒店", "！"]
    tokenizer = VocabularyTokenizer(
        {word: i for i, word in enumerate(["<pad>", "<unk>", *words])},
        lambda text: re.findall("喜欢|讨厌|酒店|.", text),
        padding="<pad>",
        unknown="<unk>",
    )
    model = Bag(tokenizer, {"喜欢": [0.0, 3.0], "讨厌": [5.0, 0.0]})
    (found,) = HotFlip(model, tokenizer, max_flips=1).attack(["我很喜欢酒店！"], [1])
    assert found.fooled and found.tried > 0
    assert found.changes in [((word, "讨厌"),) for word in ("我", "很", "喜欢", "酒店")]
    assert remade(found) == found.text


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


def test_a_wrong_prediction_is_wrong_and_not_not_attacked(pair):
    model, tokenizer = pair
    (label,) = right_labels(model, tokenizer, ["……"])
    (found,) = HotFlip(model, tokenizer).attack(["……"], [(label + 1) % 3])
    assert (found.was_right, found.not_attacked, found.robust, found.fooled, found.tried) == (False,) * 4 + (0,)


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


def test_predictions_on_a_vocabulary_do_not_depend_on_the_batches():
    model = OnCharacters(VOCABULARY)
    labels = right_labels(model, CHARS, TEXTS)
    whole = [(each.text, each.prediction, each.tried) for each in HotFlip(model, CHARS).attack(TEXTS, labels)]
    one = HotFlip(model, CHARS, batch_size=1).attack(TEXTS, labels)
    assert [(each.text, each.prediction, each.tried) for each in one] == whole
    assert all(math.isfinite(ask(model, CHARS, text)[0]) for text in [*TEXTS, ""])
