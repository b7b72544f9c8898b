"""HotFlip: words swapped for others by the gradient."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from ..options import check_count, is_finite, must_be, option, options
from ..taps import refuse_shards
from .text_attack import TextAttack
from .texts import Change, Search, Tokens, is_spaceless, word_spans

SPARE = 4  # flips ranked for each that is tried, since some do not survive the tokenizer
WORD, COMMA = "a", "，"  # a context for words, and one for Chinese characters


@options
class HotFlip(TextAttack):
    r"""
    Swaps words for others by the first-order gain in loss (Ebrahimi et al. 2018, https://arxiv.org/abs/1712.06751):
    where the token :math:`x_p` is looked up with gradient :math:`g_p`, a token :math:`w` in its place promises

    .. math:: (E_w - E_{x_p}) \cdot g_p.

    In each round the ``candidates`` flips that promise most, over all words of the text and all of the vocabulary, are
    tried on the model, and the worst is kept if it raises the loss. A word is flipped at most once. The text is done
    when the prediction is wrong, ``max_flips`` words are flipped, or none of the candidates raises the loss.

    A flip is made in the text, and the model gets the tokenizer's reading of it; flips that change another token too
    are not tried. Which tokens can be flipped depends on the script:

    * Where there are spaces, words of letters only that are one token; words are the stretches between white space,
      without the punctuation around. They are flipped to tokens of at least 2 letters that the tokenizer reads as a
      word of their own, so neither to special or unused tokens nor to continuations. Byte-level and sentencepiece
      vocabularies hold beginnings of words that look like words. Where the tokenizer ignores case, the new
      word gets the case of the old one.
    * In Chinese and Japanese, tokens that consist of characters of that script, single characters included. They are
      flipped to other such tokens.

    Text with neither, such as English words on a vocabulary of characters, is not attacked, and reported so.

    :param model: the model; it is in eval mode during an attack only.
    :options:
    :raises ValueError: if an argument is out of range, the tokenizer is not a fast one, or its vocabulary has no
        words.

    Example, for a model and a tokenizer of yours, and with pairs of which the second text is attacked::

        HotFlip(model, tokenizer).attack(texts, labels, progress=tqdm.tqdm)
        HotFlip(model, tokenizer, side="second").attack(list(zip(premises, hypotheses)), labels)
    """

    gradients = "each"

    max_flips: int = option(default=3, check=check_count, doc="the number of words or characters that may be flipped")
    candidates: int = option(default=8, check=check_count, doc="the number of flips of a text tried in a round")
    min_similarity: float | None = option(
        default=None,
        check=must_be("a number from -1 to 1 or None", lambda x: x is None or (is_finite(x) and abs(x) <= 1)),
        doc="the least cosine of the embeddings of the old and the new word, from -1 to 1; ``None`` for no bound",
    )

    @property
    def limit(self) -> int:
        return self.max_flips

    def make_memory(self, model: nn.Module) -> None:
        (tap,) = self.embedding_taps
        refuse_shards([(tap.name, tap.embedding.weight)], "HotFlip, which reads the word vectors,")
        self._weight = tap.embedding.weight
        self._read_vocabulary()

    def prepare(self, texts: list[str]) -> None:
        rows = self._weight.detach()[self._ids.to(self._weight.device)]
        self._rows = rows.to(torch.promote_types(rows.dtype, torch.float32))

    def propose(self, search: Search) -> list[Change]:
        text, tokens = search.text, search.tokens
        if tokens is None or not (places := self._places(search, text, tokens)):
            return []
        gains = self._gains(text, tokens, places)
        best = gains.flatten().topk(min(SPARE * self.candidates, gains.numel()))
        flips = []
        for at in best.indices[best.values > -math.inf].tolist():
            (position, start, end), new = places[at // len(self._ids)], at % len(self._ids)
            ids = list(tokens.ids)
            ids[position] = int(self._ids[new])
            word = self._in_case(self._words[new], search.original[start:end])
            flips.append((Change(start, end, word), ids))
        read = self.ids(search, [search.changed(change) for change, _ in flips])
        return [change for (change, ids), own in zip(flips, read, strict=True) if ids == own][: self.candidates]

    def _places(self, search: Search, text: str, tokens: Tokens) -> list[tuple[int, int, int]]:
        """Return the position of each token that can be flipped, and its place in the original text."""
        special = self.special_ids()
        words = {span for span in word_spans(text) if text[slice(*span)].isalpha()}
        times = Counter(tokens.spans)  # the byte-level tokens of one character share its span
        places = []
        for position, (span, token) in enumerate(zip(tokens.spans, tokens.ids, strict=True)):
            fits = span in words or is_spaceless(text[slice(*span)])
            if fits and times[span] == 1 and token not in special:
                origin = search.origin(*span)
                if origin is not None:
                    places.append((position, *origin))
        return places

    def _gains(self, text: str, tokens: Tokens, places: list[tuple[int, int, int]]) -> Tensor:
        """Return the first-order gains, of shape ``(places, words)``; minus infinity where a flip is not allowed."""
        positions = [position for position, *_ in places]
        g = tokens.gradients[positions]
        rows = self._rows.to(g.dtype)
        old = torch.tensor([tokens.ids[position] for position in positions], device=g.device)
        before = self._weight.detach()[old].to(g.dtype)
        gains = g @ rows.T - (g * before).sum(1, keepdim=True)
        where = torch.tensor([_where(text, *tokens.spans[position]) for position in positions])
        allowed = self._fits[where].to(g.device) & (self._ids.to(g.device) != old.unsqueeze(1))
        if self.min_similarity is not None:
            unit = nn.functional.normalize
            allowed &= unit(before, dim=1) @ unit(rows, dim=1).T >= self.min_similarity
        return gains.masked_fill(~allowed | gains.isnan(), -math.inf)

    def _read_vocabulary(self) -> None:
        """Find the tokens that are words or characters, by how the tokenizer reads them first and in a context."""
        tokenizer, special = self.tokenizer, self.special_ids()
        ids = sorted(i for i in tokenizer.get_vocab().values() if i < len(self._weight) and i not in special)
        tokens = tokenizer.convert_ids_to_tokens(ids)
        written = [_written(tokenizer, token).strip() for token in tokens]
        words = [
            (i, word)
            for i, word in zip(ids, written, strict=True)
            if is_spaceless(word) or (len(word) > 1 and word.isalpha() and not any(map(is_spaceless, word)))
        ]
        texts = [word for _, word in words]
        first, spaced, beside = (self._readings(texts, before) for before in ("", f"{WORD} ", COMMA))
        kept = []
        for (i, word), alone, after_space, after_comma in zip(words, first, spaced, beside, strict=True):
            if is_spaceless(word):
                fits = (False, False, alone == [i], after_comma == [i])
            else:
                # where words begin with a mark, a piece of a word is read as itself only without a space before it
                fits = (alone == [i] and len(after_space) == 1, after_space == [i], False, False)
            if any(fits):
                kept.append((i, word, fits))
        if not kept:
            raise ValueError(
                "Expected the vocabulary of `tokenizer` to hold words of at least 2 letters, or Chinese or Japanese "
                f"characters, to flip to, but got none in {len(ids)} tokens. Use a tokenizer of words or of subwords."
            )
        self._ids = torch.tensor([i for i, *_ in kept])
        self._words = [word for _, word, _ in kept]
        self._fits = torch.tensor([fits for *_, fits in kept]).T  # a row for each value of `_where`
        self._ignores_case = tokenizer.tokenize("Aa bB") == tokenizer.tokenize("aa bb")

    def _readings(self, words: list[str], context: str) -> list[list[int]]:
        """Return the tokens of each word in a context; none where the context is read differently."""
        if not words:
            return []
        before = self.tokenizer(context.strip(), add_special_tokens=False)["input_ids"] if context else []
        read = self.tokenizer([context + word for word in words], add_special_tokens=False)["input_ids"]
        return [ids[len(before) :] if ids[: len(before)] == before else [] for ids in read]

    def _in_case(self, new: str, old: str) -> str:
        if not self._ignores_case or old.islower():
            return new
        if old.isupper() and len(old) > 1:
            return new.upper()
        return new.capitalize() if old[0].isupper() else new


def _written(tokenizer: Any, token: str) -> str:
    """The text of a token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.decoder is None:  # transformers before 4.39 fails without a decoder
        return token
    return str(tokenizer.convert_tokens_to_string([token]))


def _where(text: str, start: int, end: int) -> int:
    """Return 0 for a word at the beginning, 1 after a space; 2 for characters there, 3 for others."""
    if is_spaceless(text[start:end]):
        return 3 if start > 0 and not text[start - 1].isspace() else 2
    return 1 if start > 0 and text[start - 1] == " " else 0
