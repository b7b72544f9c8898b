"""Attacks on text of one's own: a class with one method, against its search by hand."""

from __future__ import annotations

import pytest
from texts import TEXTS, Bag, Recorder, ask, bert_for, gradients, remade, right_labels, word_piece

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


class NextWord(TextAttack):
    """Replaces words from left to right, one in each round."""

    gives_up = False

    def __init__(self, model, tokenizer, new, **options):
        self.new = new
        super().__init__(model, tokenizer, **options)

    def propose(self, search):
        search.plan = word_spans(search.original) if search.plan is None else search.plan[1:]
        return [Change(*span, self.new) for span in search.plan[:1]]


def test_an_attack_that_does_not_give_up_ends_when_it_proposes_nothing():
    model = Bag(PIECES, {"good": [0.0, 12.0], "awful": [9.0, 0.0], "best": [0.0, 60.0]})
    step = Recorder(model)
    broken, robust = NextWord(model, PIECES, "awful", step=step).attack(
        ["best good film", "film was good good"], [1, 1]
    )
    assert broken.fooled and broken.changes == (("best", "awful"), ("good", "awful"))
    assert robust.fooled and robust.changes == (("film", "awful"), ("was", "awful"), ("good", "awful"))
    assert not any(step.with_gradients)
    (kept,) = NextWord(model, PIECES, "best").attack(["film was good good best"], [1])
    assert kept.robust and kept.tried == 5 and not kept.changes


class MostSalient(TextAttack):
    """Masks the word whose lookup has the largest gradient, by the tokens of the text as it stands."""

    gradients = "each"

    def propose(self, search):
        sizes = search.tokens.gradients.norm(dim=1).tolist()
        spans = zip(sizes, search.tokens.spans, strict=True)
        places = [(size, search.origin(*span)) for size, span in spans if span[1]]
        free = [(size, place) for size, place in places if place is not None]
        return [Change(*max(free)[1], "[MASK]")] if free else []


def test_an_attack_may_use_gradients():
    found = MostSalient(BERT, PIECES, batch_size=3).attack(TEXTS, LABELS)
    for text, label, each in zip(TEXTS, LABELS, found, strict=True):
        assert remade(each) == each.text and len(each.changes) <= 3
        assert ask(BERT, PIECES, each.text, label)[1] == each.prediction
        assert not each.changes or ask(BERT, PIECES, each.text, label)[0] > ask(BERT, PIECES, text, label)[0]
        if each.changes and len(each.changes) == each.tried:
            ids, g = gradients(BERT, PIECES, text, label)
            token = PIECES.convert_ids_to_tokens(ids[1:-1])[int(g[1:-1].norm(dim=1).argmax())]
            assert token.removeprefix("##") in [old for old, _ in each.changes]
    assert {new for each in found for _, new in each.changes} == {"[MASK]"}


@pytest.mark.parametrize("side", ["first", "second"])
def test_an_attack_of_ones_own_takes_pairs(side):
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    labels = [int(BERT.eval()(**PIECES(*pair, return_tensors="pt")).logits.argmax()) for pair in pairs]
    found = Repeat(BERT, PIECES, side=side).attack(pairs, labels)
    for pair, each in zip(pairs, found, strict=True):
        assert (each.original, each.other) == (pair if side == "first" else pair[::-1])
        assert each.was_right and each.tried >= len(each.original.split(" "))
    assert any(each.changes for each in found)


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
