"""Typos: misspelt words and mistyped characters that fool a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..options import at_least, check_count, must_be
from .distance import is_farther
from .homophones import import_pinyin, is_chinese
from .search import Search, Tokens
from .slips import SHORTEST, SLIPS, character_typos, typos_of
from .text_attack import TextAttack
from .words import Change, is_spaceless, word_spans

__all__ = ["Typos", "typos_of"]


class Typos(TextAttack):
    r"""
    Misspells the words that a prediction hangs on (after Pruthi et al. 2019, https://arxiv.org/abs/1905.11268). The
    words of a text are tried one after the other, those of the largest saliency first:

    .. math:: s = \sqrt{\textstyle\sum_{i \in \text{word}} \lVert \partial \ell / \partial e_i \rVert_2^2}

    over the lookups :math:`e_i` of the tokens of the word, on the original text. A word is given one typo. All typos of
    it, or ``candidates`` of them, are tried on the model, which gets the misspelt text as its tokenizer reads it, and
    the worst is kept if it raises the loss. The text is done when the prediction is wrong, ``max_typos`` typos are
    made, or all words have been tried.

    Words are what stands between white space, without the punctuation around; only those of letters alone are
    misspelt, if they have at least 4: see :func:`~fastnlp_adv.robustness.slips.typos_of`. In Chinese and Japanese each
    character is a word, and is swapped with the next, left out, typed twice, or, in Chinese, replaced by one that
    sounds the same: see :func:`~fastnlp_adv.robustness.slips.character_typos`. Special tokens that are written out in
    the text and tokens that the tokenizer does not know stay, and so does what it cuts off. A second typo that would
    undo a part of the first is not tried: as many edits lie between the texts as typos are reported.

    :param model: the model; it is in eval mode meanwhile, and left as it was.
    :param tokenizer: a fast tokenizer of transformers, or a :class:`~fastnlp_adv.robustness.VocabularyTokenizer`.
    :param max_typos: the number of typos that may be made, at least 1.
    :param candidates: the number of typos of a word that are tried.
    :param batch_size: the number of texts that advance together, and that the model gets at a time.
    :param max_length: where texts are cut off, in tokens; the tokenizer's own length if ``None``.
    :param emb_name: part of the name of the embedding, a glob, or ``None`` for the input embedding.
    :param step: a function of the tokenized batch, a dict of tensors with ``attention_mask``, that returns logits, or
        a dict, dataclass or ``ModelOutput`` with ``pred`` or ``logits``; ``model(**batch)`` if ``None``.
    :param seed: of the choice among the typos of a word. The choice depends on it, the text and the word alone.
    :param slips: the kinds of typos: ``"swap"``, ``"drop"``, ``"double"``, ``"key"`` (the key beside it, in words of
        letters) and ``"homophone"`` (the same pinyin, in Chinese; needs the package ``pypinyin``).
    :raises ValueError: if an argument is out of range, or the tokenizer is not a fast one.

    ``attack`` raises ``ImportError`` at once if there are Chinese characters among the texts, homophones are wanted and
    ``pypinyin`` is not installed.

    Example, for a model and a tokenizer of yours::

        Typos(model, tokenizer).attack(texts, labels, progress=tqdm.tqdm)
        Typos(model, tokenizer, slips=["swap", "homophone"]).attack(texts, labels)
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
        slips: Sequence[str] = SLIPS,
    ):
        check_count("max_typos", max_typos)
        check_count("candidates", candidates)
        at_least(0)("seed", seed)
        must_be(f"a list of some of {', '.join(SLIPS)}", _are_slips)("slips", slips)
        super().__init__(
            model, tokenizer, max_typos, batch_size=batch_size, max_length=max_length, emb_name=emb_name, step=step
        )
        self._candidates, self._seed, self._slips = candidates, seed, tuple(slips)

    def prepare(self, texts: list[str]) -> None:
        if "homophone" in self._slips and any(is_chinese(text) for text in texts):
            import_pinyin()  # raises where it is not installed

    def propose(self, searches: list[Search]) -> list[list[Change]]:
        new = [search for search in searches if search.plan is None]
        if new:
            for search, tokens in zip(new, self.tokens(new), strict=True):
                search.plan = self._by_saliency(search.text, tokens)
        return [self._changes(search) for search in searches]

    def _by_saliency(self, text: str, tokens: Tokens) -> list[tuple[int, int, int]]:
        """The words that can be misspelt: the number of each, where it begins and where it ends."""
        squares = tokens.gradients.square().sum(1).tolist()
        saliency = {}
        for number, (start, end) in enumerate(word_spans(text)):
            word = text[start:end]
            own = [i for i, (a, b) in enumerate(tokens.spans) if max(a, start) < min(b, end)]
            is_special = any(tokens.ids[i] in self._special for i in own)
            if own and not is_special and (is_spaceless(word) or (len(word) >= SHORTEST and word.isalpha())):
                saliency[number, start, end] = sum(squares[i] for i in own)
        return sorted(saliency, key=lambda word: -saliency[word])

    def _changes(self, search: Search) -> list[Change]:
        """The typos of the next word that has any."""
        while search.plan:
            number, start, end = search.plan.pop(0)
            if seen := self._seen(search, self._typos(search, number, start, end)):
                return seen
        return []

    def _typos(self, search: Search, number: int, start: int, end: int) -> list[Change]:
        word = search.original[start:end]
        if is_spaceless(word):
            found = character_typos(search.original, start, self._slips)
        else:
            found = [Change(start, end, typo) for typo in typos_of(word, self._slips)]
        free = [change for change in found if search.leaves(change.start, change.end)]
        if len(free) > self._candidates:
            free = random.Random(f"{self._seed} {number} {search.original}").sample(free, self._candidates)
        made = len(search.changes)
        return [change for change in free if not made or is_farther(search.original, search.changed(change), made)]

    def _seen(self, search: Search, changes: list[Change]) -> list[Change]:
        """A typo that the tokenizer does not see, as in an unknown word, would be chosen for rounding errors."""
        if not changes:
            return []
        now, *then = self.ids([search.text, *(search.changed(change) for change in changes)])
        return [change for change, ids in zip(changes, then, strict=True) if ids != now]


def _are_slips(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and set(value) <= set(SLIPS)
