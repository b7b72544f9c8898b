"""Typos: misspelt words that fool a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from ..arguments import check_arguments, check_count
from .search import Change, Search, Tokens
from .text_attack import TextAttack
from .words import change_word, word_spans

__all__ = ["Typos", "typos_of"]

SHORTEST = 4  # letters: with fewer there is nothing to swap between the first and the last
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Each row of a keyboard is half a key to the right of the one above."""
    near: dict[str, str] = {}
    for number, row in enumerate(_ROWS):
        for at, letter in enumerate(row):
            beside = [(number, at - 1), (number, at + 1), (number - 1, at), (number - 1, at + 1)]
            beside += [(number + 1, at - 1), (number + 1, at)]
            near[letter] = "".join(_ROWS[r][c] for r, c in beside if 0 <= r < len(_ROWS) and 0 <= c < len(_ROWS[r]))
    return near


NEIGHBOURS = _neighbours()


class Typos(TextAttack):
    r"""
    Misspells the words that a prediction hangs on (after Pruthi et al. 2019, https://arxiv.org/abs/1905.11268). The
    words of a text are tried one after the other, those of the largest saliency first:

    .. math:: s = \sqrt{\textstyle\sum_{i \in \text{word}} \lVert \partial \ell / \partial e_i \rVert_2^2}

    over the lookups :math:`e_i` of the tokens of the word, on the original text. A word is given one typo, see
    :func:`typos_of`. All typos of it, or ``candidates`` of them, are tried on the model, which gets the misspelt text
    as its tokenizer reads it, and the worst is kept if it raises the loss. The text is done when the prediction is
    wrong, ``max_typos`` words are changed, or all words have been tried.

    Words are what stands between white space, without the punctuation around; only those of letters alone are
    misspelt, if they have at least 4. Special tokens that are written out in the text stay, and so does what the
    tokenizer cuts off.

    :param model: the model; it is in eval mode meanwhile, and left as it was.
    :param tokenizer: a fast tokenizer of transformers.
    :param max_typos: the number of words that may be misspelt, at least 1.
    :param candidates: the number of typos of a word that are tried.
    :param batch_size: the number of texts that advance together, and that the model gets at a time.
    :param max_length: where texts are cut off, in tokens; the tokenizer's own length if ``None``.
    :param emb_name: part of the name of the embedding, a glob, or ``None`` for the input embedding.
    :param step: a function of the tokenized batch, a dict of tensors with ``attention_mask``, that returns logits, or
        a dict, dataclass or ``ModelOutput`` with ``pred`` or ``logits``; ``model(**batch)`` if ``None``.
    :param seed: of the choice among the typos of a word. The choice depends on it, the text and the word alone.
    :raises ValueError: if an argument is out of range, or the tokenizer is not a fast one.

    Example, for a model and a tokenizer of yours::

        Typos(model, tokenizer).attack(texts, labels, progress=tqdm.tqdm)
    """

    gives_up = False  # a word that helps nothing leaves the others

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_typos: int = 2,
        candidates: int = 16,
        batch_size: int = 32,
        max_length: int | None = None,
        emb_name: str | None = None,
        step: Callable[[dict[str, Any]], Any] | None = None,
        seed: int = 0,
    ):
        check_arguments(
            {"max_typos": max_typos, "candidates": candidates, "seed": seed},
            max_typos=check_count,
            candidates=check_count,
            seed=partial(check_count, least=0),
        )
        super().__init__(
            model, tokenizer, max_typos, batch_size=batch_size, max_length=max_length, emb_name=emb_name, step=step
        )
        self._candidates, self._seed = candidates, seed

    def propose(self, searches: list[Search]) -> list[list[Change]]:
        new = [search for search in searches if search.plan is None]
        if new:
            for search, tokens in zip(new, self.tokens(new)):
                search.plan = self._by_saliency(search.text, tokens)
        return [self._changes(search) for search in searches]

    def _by_saliency(self, text: str, tokens: Tokens) -> list[int]:
        squares = tokens.gradients.square().sum(1).tolist()
        saliency = {}
        for word, (start, end) in enumerate(word_spans(text)):
            own = [i for i, (a, b) in enumerate(tokens.spans) if max(a, start) < min(b, end)]
            is_special = any(tokens.ids[i] in self._special for i in own)
            if own and not is_special and end - start >= SHORTEST and text[start:end].isalpha():
                saliency[word] = sum(squares[i] for i in own)
        return sorted(saliency, key=lambda word: -saliency[word])

    def _changes(self, search: Search) -> list[Change]:
        """The typos of the next word that has any."""
        while search.plan:
            word = search.plan.pop(0)
            start, end = word_spans(search.text)[word]
            typos = typos_of(search.text[start:end])
            if len(typos) > self._candidates:
                generator = random.Random(f"{self._seed} {word} {search.original}")
                typos = generator.sample(typos, self._candidates)
            changes = [Change(word, typo) for typo in typos]
            # a typo that the tokenizer does not see, as in an unknown word, would be chosen for rounding errors
            now, *then = self.ids([search.text, *(change_word(search.text, *change) for change in changes)])
            if seen := [change for change, ids in zip(changes, then) if ids != now]:
                return seen
        return []


def typos_of(word: str) -> list[str]:
    """
    All that one slip of the finger makes of a word: two neighbouring letters swapped, one left out, one typed twice, or
    the key beside it on a QWERTY keyboard in its place. The first and the last letter stay.

    :param word: the word.
    :return: the misspelt words, each once, without the word itself; none for words of less than 4 letters.

    Example::

        >>> [typo for typo in typos_of("film") if len(typo) != 4]
        ['flm', 'fim', 'fiilm', 'fillm']
        >>> "flim" in typos_of("film"), "fulm" in typos_of("film")
        (True, True)
    """
    if len(word) < SHORTEST:
        return []
    return [typo for typo in dict.fromkeys(_slips(word)) if typo != word]


def _slips(word: str) -> Iterator[str]:
    inner = range(1, len(word) - 1)
    for i in inner[:-1]:
        yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    for i in inner:
        yield word[:i] + word[i + 1 :]
    for i in inner:
        yield word[: i + 1] + word[i:]
    for i in inner:
        for key in NEIGHBOURS.get(word[i].lower(), ""):
            yield word[:i] + (key.upper() if word[i].isupper() else key) + word[i + 1 :]
