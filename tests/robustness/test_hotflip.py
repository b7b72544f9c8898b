"""HotFlip against loops over positions and vocabulary, and what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_untouched, snapshot
from texts import (
    TEXTS,
    WORDS,
    Bag,
    Recorder,
    ask,
    assert_honest,
    bert_for,
    byte_level,
    gradients,
    right_labels,
    texts_of_all_kinds,
    word_piece,
)

from fastnlp_adv.robustness import HotFlip, robust_accuracy

LONG_WORDS = [word for word in [*WORDS, "café"] if len(word) > 1]
PIECES = word_piece()
BYTES = byte_level()
BERT = bert_for(PIECES)
BYTE_BERT = bert_for(BYTES)
LABELS = right_labels(BERT, PIECES, TEXTS)


def flips(model, tokenizer, text, label, taken=(), min_similarity=None):
    """All flips of a text of words and single spaces, by falling first-order gain."""
    table = model.get_input_embeddings().weight.detach()
    ids, g = gradients(model, tokenizer, text, label)
    words, position, found = text.split(" "), 1, []
    for number, word in enumerate(words):
        pieces = tokenizer.tokenize(word)
        if len(pieces) == 1 and number not in taken:
            old = table[ids[position]]
            for new in LONG_WORDS:
                row = table[tokenizer.convert_tokens_to_ids(new)]
                cosine = float(row @ old) / math.sqrt(float(row @ row) * float(old @ old))
                if new != word and (min_similarity is None or cosine >= min_similarity):
                    gain = sum(float((row[k] - old[k]) * g[position, k]) for k in range(len(old)))
                    found.append((gain, number, " ".join([*words[:number], new, *words[number + 1 :]])))
        position += len(pieces)
    return sorted(found, reverse=True)


def reference(model, tokenizer, text, label, max_flips, candidates, min_similarity=None):
    """The definition, one text and one query at a time."""
    loss, prediction = ask(model, tokenizer, text, label)
    taken, queries = set(), 1
    while prediction == label and len(taken) < max_flips:
        tried = flips(model, tokenizer, text, label, taken, min_similarity)[:candidates]
        told = [(*ask(model, tokenizer, new, label), new, number) for _, number, new in tried]
        queries += 1 + len(told)
        rising = [each for each in told if each[0] > loss]
        if not rising:
            break
        loss, prediction, text, number = max(rising, key=lambda each: (each[1] != label, each[0]))
        taken.add(number)
    return text, prediction, queries


@pytest.mark.parametrize("min_similarity", [None, 0.1])
@pytest.mark.parametrize(("max_flips", "candidates"), [(1, 8), (3, 2), (20, 3)])
def test_it_is_the_greedy_search_of_its_definition(max_flips, candidates, min_similarity):
    attack = HotFlip(BERT, PIECES, max_flips=max_flips, candidates=candidates, min_similarity=min_similarity)
    results = attack.attack(TEXTS, LABELS)
    for text, label, each in zip(TEXTS, LABELS, results, strict=True):
        expected = reference(BERT, PIECES, text, label, max_flips, candidates, min_similarity)
        assert (each.text, each.prediction, each.queries) == expected
    assert any(each.changes for each in results)
    assert_honest(results, TEXTS, LABELS, BERT, PIECES, max_flips)


def test_the_first_round_tries_the_flips_of_the_highest_gain():
    for text, label in zip(TEXTS, LABELS, strict=True):
        step = Recorder(BERT)
        HotFlip(BERT, PIECES, max_flips=1, candidates=8, step=step).attack([text], [label])
        expected = [PIECES(new)["input_ids"] for _, _, new in flips(BERT, PIECES, text, label)[:8]]
        assert [len(step.asked(call)) for call in range(3)] == [1, 1, 8]
        assert sorted(step.asked(2)) == sorted(expected)
        assert step.with_gradients == [False, True, False]


def test_only_words_of_letters_that_are_one_token_are_flipped():
    model = Bag(PIECES, {"awful": [9.0, 0.0], "[SEP]": [0.0, 9.0], "[MASK]": [0.0, 9.0]})
    texts = ["[MASK] isn't watching 123 well-made, filmed!", "", "...", "42", "[SEP]", "\u2603 \u4f60\u597d", " \n\t"]
    labels = right_labels(model, PIECES, texts)
    for each in HotFlip(model, PIECES).attack(texts, labels):
        assert each.text == each.original and each.queries == 2
    (found,) = HotFlip(model, PIECES).attack(["[MASK] watching, (good)"], [1])
    assert found.text == "[MASK] watching, (awful)"


def test_the_case_of_the_old_word_is_kept_where_the_tokenizer_ignores_it():
    texts, rows = ["good", "Good", "GOOD", "GoOd"], {"good": [0.0, 1.0], "awful": [9.0, 0.0]}
    model = Bag(PIECES, rows)
    found = HotFlip(model, PIECES).attack(texts, [1] * 4)
    assert [each.text for each in found] == ["awful", "Awful", "AWFUL", "Awful"]
    cased = word_piece(lowercase=False)
    model = Bag(cased, {**rows, "G": [0.0, 9.0]})
    found = HotFlip(model, cased).attack(texts[:2], [1] * 2)
    assert [each.text for each in found] == ["awful", "Good"]  # where case counts, that is several pieces


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_results_do_not_depend_on_the_batches_and_repeat(batch_size):
    whole = HotFlip(BERT, PIECES).attack(TEXTS, LABELS)
    attack = HotFlip(BERT, PIECES, batch_size=batch_size)
    assert attack.attack(TEXTS, LABELS) == whole == attack.attack(TEXTS, LABELS)
    assert attack.attack(TEXTS[::-1], LABELS[::-1]) == whole[::-1]


@settings(max_examples=30)
@given(st.lists(texts_of_all_kinds, min_size=1, max_size=4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_any_text(texts, labels):
    for model, tokenizer in ((BERT, PIECES), (BYTE_BERT, BYTES)):
        mine = labels[: len(texts)]
        found = HotFlip(model, tokenizer, max_flips=2, candidates=4).attack(texts, mine)
        assert_honest(found, texts, mine, model, tokenizer, 2)
        for each in found:
            old, new = (tokenizer(text, truncation=True)["input_ids"] for text in (each.original, each.text))
            assert len(old) == len(new) <= 48
            differing = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
            assert len(differing) == len(each.changes)
            assert not {i for pair in differing for i in pair} & set(tokenizer.all_special_ids)


def test_texts_that_are_wrong_or_broken_are_not_asked_about_again():
    model = Bag(PIECES, {"good": [0.0, 1.0], "awful": [9.0, 0.0], "best": [0.0, 60.0], "worst": [0.0, 60.0]})
    step = Recorder(model)
    texts, labels = ["good film", "good film", "best worst film was good"], [1, 0, 1]
    broken, wrong, robust = HotFlip(model, PIECES, max_flips=2, candidates=2, step=step).attack(texts, labels)
    assert [len(batch["input_ids"]) for batch in step.batches] == [3, 2, 4, 1, 2]
    assert (broken.fooled, wrong.was_right, robust.queries) == (True, False, 7)


@pytest.mark.parametrize("fails_at", [None, 0, 1, 2, 4])
def test_the_model_is_left_as_it_was(fails_at):
    model = bert_for(PIECES, seed=1)
    model.bert.encoder.eval()
    model.bert.embeddings.requires_grad_(False)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    state, step = torch.random.get_rng_state(), Recorder(model, fails_at)
    attack = HotFlip(model, PIECES, step=step, batch_size=4)
    if fails_at is None:
        attack.attack(TEXTS, LABELS)
    else:
        with pytest.raises(KeyError, match="step"):
            attack.attack(TEXTS, right_labels(model, PIECES, TEXTS))
    assert_untouched(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert step.modes <= {False} and not attack.is_open


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_flips": 0}, "`max_flips` to be an integer of at least 1, but got 0"),
        ({"candidates": 1.5}, "`candidates` to be an integer"),
        ({"min_similarity": 2}, "`min_similarity` to be a number from -1 to 1 or None, but got 2"),
        ({"max_length": 2}, "`max_length` to be an integer of at least 3"),
        ({"emb_name": ""}, "`emb_name`"),
        ({"emb_name": "embeddings.weight"}, "`emb_name` to match one embedding"),
        ({"emb_name": "nowhere"}, "`emb_name` to be part of the name"),
        ({"emb_name": "token_type"}, "hold words of at least 2 letters.* Use a tokenizer of words or of subwords"),
        ({"step": 3}, "`step` to be a function"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        HotFlip(BERT, PIECES, **arguments)


def test_what_it_refuses_of_tokenizers_and_texts():
    with pytest.raises(ValueError, match=r"`tokenizer` to be a fast tokenizer of transformers.* Load it with"):
        HotFlip(BERT, str.split)
    unpadded = word_piece()
    unpadded.pad_token = None
    with pytest.raises(ValueError, match=r"to have a padding token.* Set `tokenizer\.pad_token"):
        HotFlip(BERT, unpadded)
    attack = HotFlip(BERT, PIECES)
    for texts, labels, message in [
        ("good", [1], "`texts` to be a sequence of strings"),
        (["good", None], [1, 1], "`texts` to be a sequence of strings"),
        (["good"], [1, 2], "as many `labels` as `texts`, but got 2 for 1"),
        (["good"], [-100], "`labels` to be an integer of at least 0"),
        (["good"], [3], "with a class for each label.* Give `step`, a function"),
    ]:
        with pytest.raises(ValueError, match=message):
            attack.attack(texts, labels)
    with pytest.raises(ValueError, match=r"logits of shape \(texts, classes\)"):
        HotFlip(BERT, PIECES, step=lambda batch: torch.zeros(1, 2, 3)).attack(["good"], [0])
    with pytest.raises(ValueError, match="`results` to hold"):
        robust_accuracy([])
