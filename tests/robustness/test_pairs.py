"""Attacks on one text of a pair against loops over its words, one query at a time; the other text stays."""

from __future__ import annotations

import pytest
import torch
from texts import TEXTS, WORDS, Recorder, bert_for, byte_level, distance, remade, word_piece
from torch.nn.functional import cross_entropy

from fastnlp_adv import HotFlip, Typos, robust_accuracy

PIECES = word_piece()
BERT = bert_for(PIECES)
PAIRS = [(text, TEXTS[(3 * i + 1) % len(TEXTS)]) for i, text in enumerate(TEXTS)] + [(TEXTS[0], TEXTS[0])]
LONG_WORDS = [word for word in [*WORDS, "café"] if len(word) > 1]
SIDES = ["first", "second"]


def with_side(pair, side, text):
    """The pair with another text in the attacked place."""
    return (text, pair[1]) if side == "first" else (pair[0], text)


def bert_batch(*pair):
    return PIECES(*pair, return_tensors="pt", truncation=True)


def ask_bert(pair, label=0):
    BERT.eval()
    with torch.no_grad():
        logits = BERT(**bert_batch(*pair)).logits
    return float(cross_entropy(logits, torch.tensor([label]))), int(logits.argmax())


def bert_gradients(pair, side, label):
    """Where the tokens of the attacked text are, the ids, and the gradients of the loss at all tokens."""
    batch = bert_batch(*pair)
    places = [i for i, of in enumerate(batch.sequence_ids(0)) if of == SIDES.index(side)]
    ids = batch.pop("input_ids")
    rows = BERT.get_input_embeddings().weight.detach()[ids].requires_grad_()
    BERT.eval()
    loss = cross_entropy(BERT(inputs_embeds=rows, **batch).logits, torch.tensor([label]))
    return places, ids[0].tolist(), torch.autograd.grad(loss, rows)[0][0]


def flips(pair, side, label, taken):
    """All flips of the attacked text, of words and single spaces, by falling first-order gain."""
    table = BERT.get_input_embeddings().weight.detach()
    places, ids, g = bert_gradients(pair, side, label)
    words, at, found = pair[SIDES.index(side)].split(" "), 0, []
    for number, word in enumerate(words):
        pieces = PIECES.tokenize(word)
        if len(pieces) == 1 and number not in taken:
            position = places[at]
            for new in LONG_WORDS:
                gain = float((table[PIECES.convert_tokens_to_ids(new)] - table[ids[position]]) @ g[position])
                if new != word:
                    found.append((gain, number, " ".join([*words[:number], new, *words[number + 1 :]])))
        at += len(pieces)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("max_flips", "candidates"), [(1, 8), (3, 2)])
def test_hotflip_is_its_greedy_search_in_one_text(side, max_flips, candidates):
    labels = [ask_bert(pair)[1] for pair in PAIRS]
    found = HotFlip(BERT, PIECES, side=side, max_flips=max_flips, candidates=candidates).attack(PAIRS, labels)
    for pair, label, each in zip(PAIRS, labels, found, strict=True):
        (loss, prediction), now, taken, queries = ask_bert(pair, label), pair, set(), 1
        while prediction == label and len(taken) < max_flips:
            tried = flips(now, side, label, taken)[:candidates]
            told = [(*ask_bert(with_side(pair, side, new), label), new, number) for _, number, new in tried]
            queries += 1 + len(told)
            rising = [t for t in told if t[0] > loss]
            if not rising:
                break
            loss, prediction, text, number = max(rising, key=lambda t: (t[1] != label, t[0]))
            now = with_side(pair, side, text)
            taken.add(number)
        assert with_side(pair, side, each.text) == now
        assert (each.prediction, each.queries) == (prediction, queries)
        assert (each.original, each.other) == (pair if side == "first" else pair[::-1])
        assert remade(each) == each.text
    assert any(each.changes for each in found)
    assert robust_accuracy(found).attacked == len(PAIRS)


@pytest.mark.parametrize("tokenizer", [PIECES, byte_level()], ids=["pieces", "bytes"])
@pytest.mark.parametrize("kind", [HotFlip, Typos])
@pytest.mark.parametrize("side", SIDES)
def test_the_model_is_always_given_the_other_text_as_it_was(kind, side, tokenizer):
    model = BERT if tokenizer is PIECES else bert_for(tokenizer)
    pair = (TEXTS[0], TEXTS[1])
    other = tokenizer(pair[1 if side == "first" else 0], add_special_tokens=False)["input_ids"]
    step = Recorder(model)
    label = int(model.eval()(**tokenizer(*pair, return_tensors="pt")).logits.argmax())
    (found,) = kind(model, tokenizer, side=side, step=step).attack([pair], [label])
    assert found.tried and len(step.batches) > 1
    for call in range(len(step.batches)):
        for ids in step.asked(call):
            kept = ids[-len(other) - 1 : -1] if side == "first" else ids[1 : len(other) + 1]
            assert kept == other


@pytest.mark.parametrize("kind", [HotFlip, Typos])
def test_results_do_not_depend_on_the_batches(kind):
    labels = [ask_bert(pair)[1] for pair in PAIRS]
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
