"""A vocabulary as a tokenizer: fastNLP's ``Vocabulary`` for the attacks on text, without transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..options import check_count, must_be

__all__ = ["VocabularyTokenizer"]

NO_LIMIT = 10**30  # what transformers says where there is no limit


class VocabularyTokenizer:
    """
    Reads texts as a model on fastNLP's ``Vocabulary`` does, and tells the attacks on text where each token stands: it
    has what :class:`HotFlip` and :class:`Typos` use of a fast tokenizer of transformers.

    The batch that an attack makes with it holds ``input_ids`` and ``attention_mask``. Where the model calls them
    otherwise, say so in the attack's ``step``.

    :param vocabulary: a ``Vocabulary`` of fastNLP with padding and an unknown entry, or a mapping from tokens to ids.
    :param split: how the texts of the training were split into tokens, a function from a text to its tokens:
        ``list``, into characters; ``str.split``, at white space; ``jieba.lcut``; ...
    :param max_length: where texts are cut off, in tokens; nowhere if ``None``.
    :param padding: the entry that texts are padded with; that of the ``Vocabulary`` if ``None``.
    :param unknown: the entry for what is not in the vocabulary; that of the ``Vocabulary`` if ``None``.
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
        if max_length is not None:
            check_count("max_length", max_length)
        table = getattr(vocabulary, "word2idx", vocabulary)
        if not isinstance(table, Mapping):
            raise ValueError(
                "Expected `vocabulary` to be a Vocabulary of fastNLP or a mapping from tokens to ids, but got "
                f"{type(vocabulary).__name__}."
            )
        self._ids = dict(table)
        self._tokens = {i: token for token, i in self._ids.items()}
        self._split = split
        self.model_max_length = NO_LIMIT if max_length is None else max_length
        self.pad_token = self._entry("padding", padding, vocabulary)
        self.unk_token = self._entry("unknown", unknown, vocabulary)
        self.all_special_ids = [self._ids[self.pad_token], self._ids[self.unk_token]]

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens beside the vocabulary: none."""
        return {}

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

    def num_special_tokens_to_add(self) -> int:
        """:return: 0; nothing is put around a text."""
        return 0

    def get_vocab(self) -> dict[str, int]:
        """:return: the ids of all tokens."""
        return dict(self._ids)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """
        Look up ids.

        :param ids: the ids.
        :return: their tokens.
        """
        return [self._tokens[i] for i in ids]

    def convert_tokens_to_ids(self, token: str) -> int:
        """
        Look up a token.

        :param token: the token.
        :return: its id, or that of the unknown entry.
        """
        found: int = self._ids.get(token, self._ids[self.unk_token])
        return found

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """
        Write tokens as text.

        :param tokens: the tokens.
        :return: them, one after the other.
        """
        return "".join(tokens)

    def tokenize(self, text: str) -> list[str]:
        """
        Split a text.

        :param text: the text.
        :return: its tokens, those that are not in the vocabulary as the unknown entry.
        """
        return [token if token in self._ids else self.unk_token for token in self._split(text)]

    def __call__(
        self,
        texts: str | list[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool = False,
        return_offsets_mapping: bool = False,
        return_tensors: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """
        Read texts.

        :param texts: a text, or several.
        :param truncation: whether to cut off what is longer than ``max_length``.
        :param max_length: a length in tokens; that of the tokenizer if ``None``.
        :param padding: whether to bring all to the length of the longest.
        :param return_offsets_mapping: whether to tell where in the text each token stands.
        :param return_tensors: ``"pt"`` for tensors of ids and mask; lists if ``None``.
        :return: ``input_ids``, ``attention_mask`` and, if wanted, ``offset_mapping``. A text without tokens is read as
            one unknown token, since models do not take nothing.
        """
        length = (max_length or self.model_max_length) if truncation else None
        read = [self._read(text)[:length] for text in ([texts] if isinstance(texts, str) else texts)]
        longest = max(map(len, read), default=0) if padding or return_tensors else 0
        missing = [max(0, longest - len(row)) for row in read]
        pad = self._ids[self.pad_token]
        found: dict[str, Any] = {
            "input_ids": [
                [self.convert_tokens_to_ids(token) for token, _ in row] + n * [pad]
                for row, n in zip(read, missing, strict=True)
            ],
            "attention_mask": [len(row) * [1] + n * [0] for row, n in zip(read, missing, strict=True)],
        }
        if return_offsets_mapping:
            found["offset_mapping"] = [
                [span for _, span in row] + n * [(0, 0)] for row, n in zip(read, missing, strict=True)
            ]
        if isinstance(texts, str) and not return_tensors:
            return {name: rows[0] for name, rows in found.items()}
        return {name: torch.tensor(rows) if return_tensors else rows for name, rows in found.items()}

    def _read(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The tokens, each with where it stands."""
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
            found.append((token, (start, at)))
        return found or [(self.unk_token, (0, 0))]
