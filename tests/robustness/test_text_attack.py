"""Attacks on text of one's own: a class with one method, against its search by hand."""

from __future__ import annotations

import pytest
from texts import TEXTS, ask, bert_for, right_labels, word_piece

from fastnlp_adv.robustness import Change, TextAttack, word_spans

PIECES = word_piece()
BERT = bert_for(PIECES)
LABELS = right_labels(BERT, PIECES, TEXTS)


class Repeat(TextAttack):
    """Says words twice; reads the original only, so it proposes again what has been changed."""

    limit = 2

    def propose(self, search):
        for start, end in word_spans(search.original):
            yield Change(start, end, f"{search.original[start:end]} {search.original[start:end]}")


def repeated(text, taken):
    """The words of a text of words and single spaces, those at `taken` twice."""
    return " ".join(f"{word} {word}" if i in taken else word for i, word in enumerate(text.split(" ")))


def test_an_attack_of_ones_own_is_the_greedy_search_over_its_changes():
    found = Repeat(BERT, PIECES).attack(TEXTS, LABELS)
    for text, label, each in zip(TEXTS, LABELS, found, strict=True):
        (loss, prediction), taken, tried = ask(BERT, PIECES, text, label), set(), 0
        while prediction == label and len(taken) < 2:
            free = [{*taken, i} for i in range(len(text.split(" "))) if i not in taken]
            told = [(*ask(BERT, PIECES, repeated(text, more), label), more) for more in free]
            tried += len(told)
            rising = [t for t in told if t[0] > loss]
            if not rising:
                break
            loss, prediction, taken = max(rising, key=lambda t: (t[1] != label, t[0]))
        assert (each.text, each.prediction, each.tried) == (repeated(text, taken), prediction, tried)
        assert each.queries == 1 + tried
    assert {len(each.changes) for each in found} >= {1, 2}


def test_arguments_can_be_assigned_and_are_checked():
    attack = Repeat(BERT, PIECES)
    attack.batch_size = 3
    with pytest.raises(ValueError, match="`batch_size` to be an integer of at least 1, but got 0"):
        attack.batch_size = 0
    with pytest.raises(ValueError, match="`tokenizer` to stay"):
        attack.tokenizer = word_piece()
    with pytest.raises(TypeError, match="Did you mean `max_length`"):
        Repeat(BERT, PIECES, maxlength=3)
    with pytest.raises(TypeError, match="abstract"):
        TextAttack(BERT, PIECES)
    unattached = Repeat(tokenizer=PIECES)
    with pytest.raises(RuntimeError, match="attached to a model"):
        unattached.attack(TEXTS, LABELS)
    assert unattached.attach(BERT).attack(TEXTS, LABELS) == attack.attack(TEXTS, LABELS)
    assert not unattached.is_open
