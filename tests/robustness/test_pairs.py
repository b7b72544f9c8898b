"""Attacks on one text of a pair against loops over its words, one query at a time; the other text stays."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from fastNLP import Vocabulary
from texts import TEXTS, WORDS, Recorder, bert_for, byte_level, distance, remade, word_piece
from torch import nn
from torch.nn.functional import cross_entropy

from fastnlp_adv import HotFlip, Typos, VocabularyTokenizer, robust_accuracy, write_report

PIECES = word_piece()
BERT = bert_for(PIECES)
PAIRS = [(text, TEXTS[(3 * i + 1) % len(TEXTS)]) for i, text in enumerate(TEXTS)] + [(TEXTS[0], TEXTS[0])]
LONG_WORDS = [word for word in [*WORDS, "café"] if len(word) > 1]
SIDES = ["first", "second"]
QUESTIONS = [
    ("物流很慢吗", "物流慢不慢"),
    ("怎么还款", "还款怎么办呢"),
    ("很好很好", "很好很好"),
    ("这家酒店好吗", "好"),
]
MARKED = ["swap", "drop", "double"]  # slips of letters and characters that need no keyboard and no pinyin


def with_side(pair, side, text):
    """The pair with another text in the attacked place."""
    return (text, pair[1]) if side == "first" else (pair[0], text)


def bert_batch(*pair):
    return PIECES(*pair, return_tensors="pt", truncation=True)


class Siamese(nn.Module):
    """Both questions through one embedding, and a comparison of their means; in double precision."""

    def __init__(self, size, seed=1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(size, 8), nn.Linear(24, 2)
        self.double()

    def encode(self, ids, mask, embedded=None):
        embedded = self.embedding(ids) if embedded is None else embedded
        return (embedded.tanh() * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def compare(self, u, v):
        return self.head(torch.cat([u, v, 9 * (u - v).abs()], 1))

    def forward(self, input_ids, attention_mask, pair_input_ids, pair_attention_mask):
        return self.compare(self.encode(input_ids, attention_mask), self.encode(pair_input_ids, pair_attention_mask))


def characters():
    vocabulary = Vocabulary()
    vocabulary.add_word_lst([c for pair in QUESTIONS for text in pair for c in text])
    return VocabularyTokenizer(vocabulary)


CHARACTERS = characters()
SIAMESE = Siamese(len(CHARACTERS))


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


def ask_siamese(pair, label=0):
    with torch.no_grad():
        logits = SIAMESE(*(torch.tensor(x) for text in pair for x in CHARACTERS([text]).values()))
    return float(cross_entropy(logits, torch.tensor([label]))), int(logits.argmax())


def siamese_saliency(pair, side, label):
    """The norm of the gradient at each character of the attacked question."""
    tables = [SIAMESE.embedding(torch.tensor(CHARACTERS([text])["input_ids"])).detach() for text in pair]
    own = tables[SIDES.index(side)].requires_grad_()
    u, v = (SIAMESE.encode(None, torch.ones(1, rows.shape[1]), rows) for rows in tables)
    (g,) = torch.autograd.grad(cross_entropy(SIAMESE.compare(u, v), torch.tensor([label])), own)
    return g[0].norm(dim=1).tolist()


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


def typos_in(text, start, end, is_character):
    """All texts with one swapped, dropped or doubled letter inside of a word, or character of a text."""
    inner = range(start, end) if is_character else range(start + 1, end - 1)
    last = len(text) if is_character else end - 1
    found = {text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in inner if i + 1 < last}
    found |= {text[:i] + text[i] + text[i:] for i in inner}
    if len(text) > 1:
        found |= {text[:i] + text[i + 1 :] for i in inner}
    return found - {text}


def greedy(pair, side, label, words, ask, is_character=False):
    """One typo at most: the first word that has one that raises the loss, and its worst."""
    loss, prediction = ask(pair, label)
    text = pair[SIDES.index(side)]
    for start, end in words if prediction == label else []:
        tried = sorted(typos_in(text, start, end, is_character))
        told = [(*ask(with_side(pair, side, typo), label), typo) for typo in tried]
        rising = [each for each in told if each[0] > loss]
        if rising:
            return max(rising, key=lambda each: (each[1] != label, each[0]))[1:]
    return prediction, text


def bert_words(pair, side, label):
    """The words of 4 letters and more of the attacked text, the most salient first."""
    places, _, g = bert_gradients(pair, side, label)
    at, start, saliency = 0, 0, {}
    for word in pair[SIDES.index(side)].split(" "):
        count = len(PIECES.tokenize(word))
        if len(word) >= 4:
            saliency[start, start + len(word)] = math.sqrt(float(g[places[at : at + count]].square().sum()))
        at, start = at + count, start + len(word) + 1
    return sorted(saliency, key=saliency.get, reverse=True)


@pytest.mark.parametrize("side", SIDES)
def test_typos_are_their_greedy_search_in_one_text(side):
    labels = [ask_bert(pair)[1] for pair in PAIRS]
    attack = Typos(BERT, PIECES, side=side, max_typos=1, candidates=99, slips=MARKED)
    found = attack.attack(PAIRS, labels)
    for pair, label, each in zip(PAIRS, labels, found, strict=True):
        expected = greedy(pair, side, label, bert_words(pair, side, label), ask_bert)
        assert (each.prediction, each.text) == expected
        assert (each.original, each.other) == (pair if side == "first" else pair[::-1])
    assert any(each.changes for each in found)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch_size", [1, 32])
def test_typos_in_one_of_two_questions_that_are_read_by_themselves(side, batch_size):
    """One of the pairs holds the same text twice, whose lookups have the same ids but other gradients."""
    labels = [ask_siamese(pair)[1] for pair in QUESTIONS]
    attack = Typos(SIAMESE, CHARACTERS, side=side, max_typos=1, slips=MARKED, batch_size=batch_size)
    for pair, label, each in zip(QUESTIONS, labels, attack.attack(QUESTIONS, labels), strict=True):
        saliency = siamese_saliency(pair, side, label)
        order = sorted(range(len(saliency)), key=lambda i: -saliency[i])
        expected = greedy(pair, side, label, [(i, i + 1) for i in order], ask_siamese, is_character=True)
        assert (each.prediction, each.text) == expected


@pytest.mark.parametrize("side", SIDES)
def test_a_flip_of_one_of_two_questions_is_that_of_the_highest_gain(side):
    """Every character may become every other; one candidate is tried."""
    table = SIAMESE.embedding.weight.detach()
    letters = sorted({c for pair in QUESTIONS for text in pair for c in text})
    for pair in QUESTIONS:
        loss, label = ask_siamese(pair)
        loss, _ = ask_siamese(pair, label)
        tables = [table[torch.tensor(CHARACTERS([text])["input_ids"])].requires_grad_() for text in pair]
        u, v = (SIAMESE.encode(None, torch.ones(1, rows.shape[1]), rows) for rows in tables)
        (g,) = torch.autograd.grad(
            cross_entropy(SIAMESE.compare(u, v), torch.tensor([label])), tables[SIDES.index(side)]
        )
        text, gains = pair[SIDES.index(side)], {}
        for i, old in enumerate(text):
            for new in letters:
                if new != old:
                    rows = [table[CHARACTERS.convert_tokens_to_ids(c)] for c in (new, old)]
                    gains[text[:i] + new + text[i + 1 :]] = float((rows[0] - rows[1]) @ g[0, i])
        best = max(gains, key=gains.get)
        (found,) = HotFlip(SIAMESE, CHARACTERS, side=side, max_flips=1, candidates=1).attack([pair], [label])
        rises = ask_siamese(with_side(pair, side, best), label)[0] > loss
        assert found.text == text if not rises else gains[found.text] == pytest.approx(gains[best], abs=1e-12)


@pytest.mark.skipif(importlib.util.find_spec("pypinyin") is None, reason="pypinyin is not installed")
@pytest.mark.parametrize("side", SIDES)
def test_homophones_take_the_place_of_characters_of_one_question(side):
    from pypinyin import Style, pinyin

    labels = [ask_siamese(pair)[1] for pair in QUESTIONS]
    # characters beyond the vocabulary are unknown, which the model sees as well
    found = Typos(SIAMESE, CHARACTERS, side=side, slips=["homophone"], candidates=200).attack(QUESTIONS, labels)
    for pair, each in zip(QUESTIONS, found, strict=True):
        assert (each.original, each.other) == (pair if side == "first" else pair[::-1])
        for before, after in each.changes:
            shared = [set(pinyin(c, heteronym=True, style=Style.NORMAL)[0]) for c in (before, after)]
            assert shared[0] & shared[1]
    assert any(each.changes for each in found)


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


def test_a_report_shows_the_other_text_first(tmp_path):
    (found,) = HotFlip(BERT, PIECES, side="second").attack(PAIRS[:1], [ask_bert(PAIRS[0])[1]])
    page = write_report([found], tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index(f'<p class="text" dir="auto">{PAIRS[0][0]}</p>') < page.index("<del>")


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
