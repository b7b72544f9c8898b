"""Typos against loops over words and edits, and what they promise."""

from __future__ import annotations

import math
import re
import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import (
    HAN,
    TEXTS,
    WORDS,
    Recorder,
    ask,
    assert_honest,
    bert_for,
    byte_level,
    distance,
    gradients,
    right_labels,
    texts_of_all_kinds,
    word_piece,
)

from fastnlp_adv.robustness import Typos
from fastnlp_adv.robustness.typos import SLIPS, typos_of

PIECES = word_piece()
BYTES = byte_level()
BERT = bert_for(PIECES)
BYTE_BERT = bert_for(BYTES)
LABELS = right_labels(BERT, PIECES, TEXTS)
KEYS = {
    key: (column + row / 2, row)  # each row is half a key to the right of the one above
    for row, keys in enumerate(["qwertyuiop", "asdfghjkl", "zxcvbnm"])
    for column, key in enumerate(keys)
}


def all_typos(word):
    """From all strings at a distance of 1 that keep the ends, those that are one slip of the finger."""
    if len(word) < 4:
        return set()
    letters = string.ascii_letters + word
    near = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    near |= {word[:i] + word[i + 1 :] for i in range(len(word))}
    near |= {word[:i] + x + word[i:] for i in range(len(word) + 1) for x in letters}
    near |= {word[:i] + x + word[i + 1 :] for i in range(len(word)) for x in letters}
    found = set()
    for new in near - {word}:
        first = next((i for i, (a, b) in enumerate(zip(word, new, strict=False)) if a != b), min(len(word), len(new)))
        if len(new) > len(word):  # the letter that is one too many is one that stands before it
            fits = any(new == word[: i + 1] + word[i:] for i in range(1, len(word) - 1))
        elif len(new) == len(word) and sorted(new) != sorted(word):
            old, key = word[first], new[first]
            fits = old.isupper() == key.isupper() and {old.lower(), key.lower()} <= KEYS.keys()
            fits = fits and math.dist(KEYS[old.lower()], KEYS[key.lower()]) < 1.2
        else:
            fits = True
        if fits and (new[0], new[-1]) == (word[0], word[-1]):
            found.add(new)
    return found


@given(st.one_of(st.sampled_from(WORDS), st.text(alphabet="aabBqéLZ", max_size=7), st.text(max_size=8)))
def test_typos_are_all_single_slips_inside_a_word(word):
    typos = typos_of(word)
    assert len(set(typos)) == len(typos)
    assert set(typos) == all_typos(word)


def reference(model, tokenizer, text, label, max_typos):
    """The definition, for a text of words and single spaces, one query at a time."""
    loss, prediction = ask(model, tokenizer, text, label)
    queries, words, changed = 2, text.split(" "), 0
    _, g = gradients(model, tokenizer, text, label)
    position, saliency = 1, {}
    for number, word in enumerate(words):
        count = len(tokenizer.tokenize(word))
        if len(word) >= 4:
            saliency[number] = math.sqrt(sum(float(x) ** 2 for x in g[position : position + count].flatten()))
        position += count
    for number in sorted(saliency, key=saliency.get, reverse=True):
        if prediction != label or changed == max_typos:
            break
        tried = [[*words[:number], typo, *words[number + 1 :]] for typo in sorted(all_typos(words[number]))]
        told = [(*ask(model, tokenizer, " ".join(new), label), new) for new in tried]
        queries += len(told)
        rising = [each for each in told if each[0] > loss]
        if rising:
            loss, prediction, words = max(rising, key=lambda each: (each[1] != label, each[0]))
            changed += 1
    return " ".join(words), prediction, queries if words else 1


@pytest.mark.parametrize("max_typos", [1, 3])
def test_it_is_the_greedy_search_of_its_definition(max_typos):
    results = Typos(BERT, PIECES, max_typos=max_typos, candidates=1000).attack(TEXTS, LABELS)
    for text, label, each in zip(TEXTS, LABELS, results, strict=True):
        assert (each.text, each.prediction, each.queries) == reference(BERT, PIECES, text, label, max_typos)
    assert any(each.changes for each in results)
    assert_honest(results, TEXTS, LABELS, BERT, PIECES, max_typos)


def test_short_words_special_tokens_and_what_is_no_word_stay():
    texts = [
        "the [MASK] isn't 12345 well-made, it was",
        "",
        "...",
        "[UNK]",
        "\u2603\u2603\u2603\u2603",
        " \n\t",
        "a1b2c3",
    ]
    labels = right_labels(BERT, PIECES, texts)
    step = Recorder(BERT)
    for each in Typos(BERT, PIECES, step=step).attack(texts, labels):
        assert each.text == each.original and each.queries == 2
    assert len(step.batches) == 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_depend_on_the_seed_alone(batch_size):
    state = torch.random.get_rng_state()
    whole = Typos(BERT, PIECES, candidates=3).attack(TEXTS, LABELS)
    assert torch.equal(torch.random.get_rng_state(), state)
    attack = Typos(BERT, PIECES, candidates=3, batch_size=batch_size)
    assert attack.attack(TEXTS, LABELS) == whole == attack.attack(TEXTS, LABELS)
    assert attack.attack(TEXTS[::-1], LABELS[::-1]) == whole[::-1]
    assert Typos(BERT, PIECES, candidates=3, seed=1).attack(TEXTS, LABELS) != whole
    assert all(each.queries <= 2 + 3 * len(each.original.split()) for each in whole)


@settings(max_examples=25)
@given(st.lists(texts_of_all_kinds, min_size=1, max_size=4), st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_any_text(texts, labels):
    for model, tokenizer in ((BERT, PIECES), (BYTE_BERT, BYTES)):
        mine = labels[: len(texts)]
        found = Typos(model, tokenizer, candidates=4, slips=SLIPS[:4]).attack(texts, mine)
        assert_honest(found, texts, mine, model, tokenizer, 2)
        for each in found:
            assert distance(each.original, each.text) == len(each.changes)
            for before, after in each.changes:
                assert distance(before, after) == 1
                if not re.match(HAN, before):
                    assert before.isalpha() and after.isalpha() and len(before) >= 4
                    assert (before[0], before[-1]) == (after[0], after[-1])
            for special in ("[SEP]", "[MASK]", "[UNK]"):
                assert each.original.count(special) == each.text.count(special)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_typos": 0}, "`max_typos` to be an integer of at least 1, but got 0"),
        ({"candidates": None}, "`candidates` to be an integer"),
        ({"seed": -1}, "`seed` to be an integer of at least 0"),
        ({"slips": "swap"}, "`slips` to be a list of some of swap, drop, double, key, homophone, but got 'swap'"),
        ({"slips": ["swap", "flip"]}, "`slips` to be a list of some"),
        ({"slips": []}, "`slips` to be a list of some"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Typos(BERT, PIECES, **arguments)


def test_the_embedding_must_be_looked_up_with_the_ids_of_the_text():
    with pytest.raises(ValueError, match=r"embedding `bert\.embeddings\.position.* Name the embedding that is looked"):
        Typos(BERT, PIECES, emb_name="position").attack(TEXTS[:2], LABELS[:2])
