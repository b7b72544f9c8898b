"""How texts are read and changed: words, changes, the search for an attacked text, a vocabulary as a tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..options import check_count, must_be, optional
from .results import Attacked

# Chinese and Japanese, which are written without spaces and whose single characters have a meaning
_SPACELESS = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0002fa1f\U00030000-\U000323af"
)
_UNIT = re.compile(f"[{_SPACELESS}]|[^\\s{_SPACELESS}]+")
SPACELESS = re.compile(f"[{_SPACELESS}]+")


class Change(NamedTuple):
    """
    A change of a text.

    :param start: where the changed stretch begins in the original text.
    :param end: where it ends in the original text.
    :param new: the new text of the stretch.
    """

    start: int
    end: int
    new: str


def is_spaceless(text: str) -> bool:
    """Tell whether a text is not empty and consists of characters of Chinese or Japanese."""
    return SPACELESS.fullmatch(text) is not None


def word_spans(text: str) -> list[tuple[int, int]]:
    """
    Find the words of a text: the stretches between white space, without the punctuation around them. Each character of
    Chinese and Japanese is a word of its own.

    :param text: the text.
    :return: the beginning and the end of each.

    Example::

        >>> [text[a:b] for text in ["(Well-made), isn't it? ..."] for a, b in word_spans(text)]
        ['Well-made', "isn't", 'it']
        >>> [text[a:b] for text in ["这部film，(很)好！"] for a, b in word_spans(text)]
        ['这', '部', 'film', '很', '好']
    """
    spans = []
    for match in _UNIT.finditer(text):
        inside = [i for i in range(*match.span()) if unicodedata.category(text[i])[0] not in "PS"]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return spans


def edited(text: str, changes: Iterable[Change]) -> str:
    """Make changes in a text, which must not overlap."""
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


class Tokens(NamedTuple):
    """
    A text as the model sees it.

    :param ids: the ids of its tokens, with special tokens and without padding.
    :param spans: the start and end of each token in the text, without white space; (0, 0) for special tokens that the
        tokenizer adds, and for the tokens of the other text of a pair.
    :param gradients: the gradient of the logarithm of the loss at the lookup of each, of shape ``(tokens, features)``.
        It has the direction of the gradient of the loss, and does not vanish where the model is confident.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    gradients: Tensor


@dataclass
class Search:
    """
    The search for an attacked text.

    :param original: the text.
    :param label: its label.
    :param other: the other text of a pair, which stays; ``None`` for a single text.
    :param changes: the changes of the original so far.
    :param loss: the loss of :attr:`text`.
    :param prediction: the prediction for :attr:`text`.
    :param queries: how many times the model was run.
    :param tried: how many changes were tried.
    :param tokens: :attr:`text` as the model sees it, for attacks with gradients.
    :param plan: room for a decision that an attack makes once per text.
    """

    original: str
    label: int
    other: str | None = None
    changes: tuple[Change, ...] = ()
    loss: float = 0.0
    prediction: int = -1
    queries: int = 0
    tried: int = 0
    tokens: Tokens | None = None
    plan: list[Any] | None = None

    @property
    def text(self) -> str:
        """The worst text so far."""
        return edited(self.original, self.changes)

    def changed(self, change: Change) -> str:
        """Return the text with all changes so far and this one."""
        return edited(self.original, [*self.changes, change])

    def leaves(self, start: int, end: int) -> bool:
        """Tell whether no change so far reaches into a stretch of the original."""
        return all(end <= change.start or change.end <= start for change in self.changes)

    def origin(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the place in the original of a stretch of :attr:`text`; ``None`` if a change reaches into it."""
        shift = 0
        for change in sorted(self.changes):
            if end <= change.start + shift:
                break
            if start < change.start + shift + len(change.new):
                return None
            shift += len(change.new) - (change.end - change.start)
        return start - shift, end - shift

    def result(self) -> Attacked:
        """Return the result; changes are made only where the prediction was right."""
        was_right = self.prediction == self.label or bool(self.changes)
        made = sorted(self.changes)
        changes = tuple((self.original[start:end], new) for start, end, new in made)
        starts = tuple(change.start for change in made)
        rest = (self.queries, starts, self.tried, self.other)
        return Attacked(self.original, self.text, self.label, self.prediction, was_right, changes, *rest)


class VocabularyTokenizer:
    """
    Reads texts for a model on fastNLP's ``Vocabulary``, without transformers: it has the methods of a fast tokenizer
    that :class:`HotFlip`, :class:`Typos` and other attacks on text use.

    The batch that an attack makes with it holds ``input_ids`` and ``attention_mask``. Give the attack a ``step`` that
    passes them to the model under these names. For the second texts of pairs it also holds ``pair_input_ids``
    and ``pair_attention_mask``.

    :param vocabulary: a ``Vocabulary`` of fastNLP with padding and an unknown entry, or a mapping from tokens to ids.
    :param split: how the texts of the training were split into tokens, a function from a text to its tokens:
        ``list``, into characters; ``str.split``, at white space; ``jieba.lcut``; ...
    :param max_length: where texts are cut off, in tokens; nowhere if ``None``.
    :param padding: the entry that texts are padded with; the ``Vocabulary``'s own if ``None``.
    :param unknown: the entry for tokens that are not in the vocabulary; the ``Vocabulary``'s own if ``None``.
    :raises ValueError: if an argument is not of that kind, or padding or unknown are not in the vocabulary.

    Example::

        >>> ids = {"<pad>": 0, "<unk>": 1, "好": 2, "书": 3}
        >>> tokenizer = VocabularyTokenizer(ids, padding="<pad>", unknown="<unk>")
        >>> tokenizer(["好书", "买"], padding=True)["input_ids"]
        [[2, 3], [1, 0]]

    For a model of fastNLP::

        tokenizer = VocabularyTokenizer(bundle.get_vocab("words"))
        step = lambda batch: model(batch["input_ids"], batch["attention_mask"].sum(1))
        Typos(model, tokenizer, step=step).attack(texts, labels)
    """

    is_fast = True
    padding_side = "right"

    def __init__(
        self,
        vocabulary: Any,
        split: Callable[[str], Iterable[str]] = list,
        *,
        max_length: int | None = None,
        padding: str | None = None,
        unknown: str | None = None,
    ):
        must_be("a function from a text to its tokens", callable)("split", split)
        optional(check_count)("max_length", max_length)
        table = getattr(vocabulary, "word2idx", vocabulary)
        if not isinstance(table, Mapping):
            raise ValueError(
                "Expected `vocabulary` to be a Vocabulary of fastNLP or a mapping from tokens to ids, but got "
                f"{type(vocabulary).__name__}."
            )
        self._ids = dict(table)
        self._tokens = {i: token for token, i in self._ids.items()}
        self._split = split
        self.model_max_length = 10**30 if max_length is None else max_length  # as in transformers
        self.pad_token = self._entry("padding", padding, vocabulary)
        self.unk_token = self._entry("unknown", unknown, vocabulary)
        self.all_special_ids = [self._ids[self.pad_token], self._ids[self.unk_token]]

    def _entry(self, name: str, given: str | None, vocabulary: Any) -> str:
        entry = getattr(vocabulary, name, None) if given is None else given
        if not isinstance(entry, str) or entry not in self._ids:
            raise ValueError(
                f"Expected `{name}` to be an entry of the vocabulary, but got {entry!r}. Make the Vocabulary with "
                f"`{name}=...`, or name the entry here."
            )
        return entry

    def __len__(self) -> int:
        return len(self._ids)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return 0: no special tokens are put around texts."""
        return 0

    def get_added_vocab(self) -> dict[str, int]:
        """Return an empty dict: there are no tokens beside the vocabulary."""
        return {}

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens."""
        return dict(self._ids)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens with these ids."""
        return [self._tokens[i] for i in ids]

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a token, or of the unknown entry."""
        found: int = self._ids.get(token, self._ids[self.unk_token])
        return found

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Return the tokens as a text, joined without spaces."""
        return "".join(tokens)

    def tokenize(self, text: str) -> list[str]:
        """Split a text into tokens; those that are not in the vocabulary become the unknown entry."""
        return [token if token in self._ids else self.unk_token for token in self._split(text)]

    def __call__(
        self,
        texts: str | list[str],
        text_pair: str | list[str] | None = None,
        *,
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool = False,
        return_offsets_mapping: bool = False,
        return_tensors: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """
        Read texts as transformers does, but the second texts of pairs separately, into ``pair_input_ids`` and so on.
        A text without tokens is read as one unknown token, since models take no less.
        """
        length = (max_length or self.model_max_length) if truncation else None
        names = ("input_ids", "attention_mask", "offset_mapping")[: 3 if return_offsets_mapping else 2]
        pad = (self._ids[self.pad_token], 0, (0, 0))
        found: dict[str, Any] = {}
        for prefix, given in {"": texts, "pair_": text_pair}.items():
            if given is None:
                continue
            rows = [self._read(text)[:length] for text in ([given] if isinstance(given, str) else given)]
            longest = max(map(len, rows), default=0) if padding or return_tensors else 0
            rows = [row + (longest - len(row)) * [pad] for row in rows]
            found.update({prefix + name: [[entry[i] for entry in row] for row in rows] for i, name in enumerate(names)})
        if isinstance(texts, str) and not return_tensors:
            return {name: rows[0] for name, rows in found.items()}
        return {name: torch.tensor(rows) if return_tensors else rows for name, rows in found.items()}

    def _read(self, text: str) -> list[tuple[int, int, tuple[int, int]]]:
        """Return id, mask and place of each token."""
        found, at = [], 0
        lower = text.lower()  # `split` may ignore case
        for token in self._split(text):
            start = text.find(token, at)
            if start < 0 and len(lower) == len(text):
                start = lower.find(token, at)
            if start < 0:
                raise ValueError(
                    f"Expected `split` to return stretches of the text in their order, but got {token!r} of "
                    f"{text!r:.80}."
                )
            at = start + len(token)
            found.append((self.convert_tokens_to_ids(token), 1, (start, at)))
        return found or [(self._ids[self.unk_token], 1, (0, 0))]
