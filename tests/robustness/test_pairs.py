"""Attacks on one text of a pair against loops over its words, one query at a time; the other text stays."""

from __future__ import annotations

import pytest
from texts import TEXTS, Recorder, bert_for, byte_level, distance, word_piece

from fastnlp_adv import HotFlip, Typos

PIECES = word_piece()
BERT = bert_for(PIECES)
PAIRS = [(text, TEXTS[(3 * i + 1) % len(TEXTS)]) for i, text in enumerate(TEXTS)] + [(TEXTS[0], TEXTS[0])]


def label_of(model, tokenizer, pair):
    return int(model.eval()(**tokenizer(*pair, return_tensors="pt")).logits.argmax())


@pytest.mark.parametrize("tokenizer", [PIECES, byte_level()], ids=["pieces", "bytes"])
@pytest.mark.parametrize("kind", [HotFlip, Typos])
@pytest.mark.parametrize("side", ["first", "second"])
def test_the_model_is_always_given_the_other_text_as_it_was(kind, side, tokenizer):
    model = BERT if tokenizer is PIECES else bert_for(tokenizer)
    pair = (TEXTS[0], TEXTS[1])
    other = tokenizer(pair[1 if side == "first" else 0], add_special_tokens=False)["input_ids"]
    step = Recorder(model)
    (found,) = kind(model, tokenizer, side=side, step=step).attack([pair], [label_of(model, tokenizer, pair)])
    assert (found.original, found.other) == (pair if side == "first" else pair[::-1])
    assert found.was_right and found.tried and len(step.batches) > 1
    for call in range(len(step.batches)):
        for ids in step.asked(call):
            kept = ids[-len(other) - 1 : -1] if side == "first" else ids[1 : len(other) + 1]
            assert kept == other


@pytest.mark.parametrize("kind", [HotFlip, Typos])
def test_results_do_not_depend_on_the_batches(kind):
    labels = [label_of(BERT, PIECES, pair) for pair in PAIRS]
    whole = kind(BERT, PIECES, side="second").attack(PAIRS, labels)
    assert kind(BERT, PIECES, side="second", batch_size=2).attack(PAIRS, labels) == whole
    assert all(distance(each.original, each.text) == len(each.changes) for each in whole) or kind is HotFlip


def test_what_it_refuses():
    with pytest.raises(ValueError, match="`side` to be one of None, 'first', 'second', but got 'third'"):
        HotFlip(BERT, PIECES, side="third")
    with pytest.raises(ValueError, match=r"`texts` to be a sequence of strings.* name the attacked text with `side`"):
        HotFlip(BERT, PIECES).attack(PAIRS, [0] * len(PAIRS))
    for texts in (TEXTS, [("one",)], [("one", None)], "ab"):
        with pytest.raises(ValueError, match=r"`texts` to be a sequence of pairs of strings.* leave `side` out"):
            Typos(BERT, PIECES, side="first").attack(texts, [0] * len(texts))
    with pytest.raises(ValueError, match="`max_length` to be an integer of at least 4"):
        Typos(BERT, PIECES, side="first", max_length=3)
