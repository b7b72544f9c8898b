"""What attacks on text share: rounds of edits, and the questions to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model_method import ModelMethod
from ..options import at_least, check_count, check_name, must_be
from ..regularizers.outputs import read_outputs
from ..taps import Tap, taps_on
from .attacked import Attacked
from .evaluate import modes_kept
from .scores import Scores, score
from .search import Search, Tokens
from .words import Change
from .worst_case import differentiable

__all__ = ["TextAttack"]


class TextAttack(ModelMethod, ABC):
    """
    Searches for edits of a text that the model gets wrong. The texts of a batch advance together: in a round each is
    given some edits, all of them are tried, and each text keeps its worst if that raises its loss. A text is done when
    the prediction is wrong, which it may be before any edit, or nothing is left to try.

    :param model: the model; it is in eval mode meanwhile, and left as it was.
    :param tokenizer: a fast tokenizer of transformers, or a :class:`VocabularyTokenizer`.
    :param limit: how many edits may be made.
    :param rest: ``batch_size``, ``max_length``, ``emb_name`` and ``step``, as the attacks document them.
    """

    #: whether a text is done when no edit of a round raises its loss
    gives_up = True

    def __init__(self, model: nn.Module, tokenizer: Any, limit: int, **rest: Any):
        _check_tokenizer(tokenizer)
        check_count("batch_size", rest["batch_size"])
        if rest["max_length"] is not None:
            at_least(tokenizer.num_special_tokens_to_add() + 1)("max_length", rest["max_length"])
        check_name("emb_name", rest["emb_name"])
        if rest["step"] is not None:
            must_be("a function of the tokenized batch or None", callable)("step", rest["step"])
        self._emb_name = rest["emb_name"]
        super().__init__(model)
        self.close()
        if len(self.taps) != 1:
            names = ", ".join(f"`{tap.name}`" for tap in self.taps)
            raise ValueError(f"Expected `emb_name` to match one embedding, but got {names}. Give more of its name.")
        self._model, self._tokenizer, self._limit = model, tokenizer, limit
        self._batch_size, self._step = rest["batch_size"], rest["step"] or (lambda batch: model(**batch))
        length = tokenizer.model_max_length if rest["max_length"] is None else rest["max_length"]
        # a tokenizer that was told no length says one of 30 digits
        self._cut = {"truncation": True, "max_length": length} if length < 10**9 else {}
        self._special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}

    def find_taps(self, model: nn.Module) -> list[Tap]:
        return taps_on(model, self._emb_name, "token")

    def prepare(self, texts: list[str]) -> None:
        """See to what the texts need, before any of them is attacked."""

    @abstractmethod
    def propose(self, searches: list[Search]) -> list[list[Change]]:
        """Return the edits to try next, for each text that is predicted right; none ends its search."""

    def attack(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> list[Attacked]:
        """
        Attack texts.

        :param texts: the texts.
        :param labels: the label of each, an integer.
        :param progress: wraps the batches of texts, for instance ``tqdm.tqdm``; nothing is shown without one.
        :return: what became of each text.
        :raises ValueError: if there are not as many labels as texts, or the model's outputs do not fit them.
        """
        pairs = _pairs(texts, labels)
        self.prepare([text for text, _ in pairs])
        batches = [pairs[i : i + self._batch_size] for i in range(0, len(pairs), self._batch_size)]
        found: list[Attacked] = []
        with modes_kept(self._model), self.running():
            self._model.eval()
            for batch in batches if progress is None else progress(batches):
                found += self._attack(batch)
        return found

    def tokens(self, searches: list[Search]) -> list[Tokens]:
        """Return the tokens of texts with the gradients at their lookups, by one forward and backward pass."""
        batch, spans = self._encode([each.text for each in searches])
        for tap in self.taps:
            tap.begin_pass(inner=True)
        with torch.enable_grad(), differentiable(self._model):
            total = self._score(batch, [each.label for each in searches])[0].heights.sum()
        self.differentiate(total)
        gradients = self._at(batch["input_ids"])
        found = []
        for row, search in enumerate(searches):
            search.queries += 1
            real = batch["attention_mask"][row].bool()
            where = [span for span, kept in zip(spans[row], real.tolist(), strict=True) if kept]
            stripped = [_stripped(search.text, *span) for span in where]
            found.append(Tokens(batch["input_ids"][row][real].tolist(), stripped, gradients[row][real]))
        return found

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids that the model is given for each text, without padding."""
        return self._tokenizer(texts, **self._cut)["input_ids"] if texts else []

    def _attack(self, pairs: list[tuple[str, int]]) -> list[Attacked]:
        clean = self._ask([text for text, _ in pairs], [label for _, label in pairs])
        searches = [
            Search(text, label, text, loss, prediction, prediction == label)
            for (text, label), (loss, prediction) in zip(pairs, clean, strict=True)
        ]
        alive = [search for search in searches if search.was_right]
        while alive:
            alive = self._round(alive)
        return [search.result() for search in searches]

    def _round(self, searches: list[Search]) -> list[Search]:
        """Try the edits of all texts, and return the texts that go on."""
        asked = [
            (search, change, search.changed(change))
            for search, changes in zip(searches, self.propose(searches), strict=True)
            for change in changes
        ]
        told = self._ask([text for *_, text in asked], [search.label for search, *_ in asked])
        tried: dict[int, list[Any]] = {}
        for (search, change, text), each in zip(asked, told, strict=True):
            tried.setdefault(id(search), []).append((change, text, *each))
        on = [s for s in searches if id(s) in tried and (s.consider(tried[id(s)]) or not self.gives_up)]
        return [search for search in on if search.prediction == search.label and len(search.changes) < self._limit]

    def _ask(self, texts: list[str], labels: list[int]) -> list[tuple[float, int]]:
        """The loss and the prediction for each text; those of about a length together, to pad little."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        told: dict[int, tuple[float, int]] = {}
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            batch, _ = self._encode([texts[i] for i in rows])
            with torch.no_grad():
                scores, predictions = self._score(batch, [labels[i] for i in rows])
            told.update(zip(rows, zip(scores.losses.tolist(), predictions.tolist(), strict=True), strict=True))
        return [told[i] for i in range(len(texts))]

    def _encode(self, texts: list[str]) -> tuple[dict[str, Tensor], list[list[tuple[int, int]]]]:
        encoded = self._tokenizer(
            texts,
            **self._cut,
            padding=True,
            return_attention_mask=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        device = next(self._model.parameters()).device
        spans = encoded.pop("offset_mapping").tolist()
        return {name: value.to(device) for name, value in encoded.items()}, spans

    def _score(self, batch: dict[str, Tensor], labels: list[int]) -> tuple[Scores, Tensor]:
        outputs = self._step(batch)
        logits = outputs if isinstance(outputs, Tensor) else read_outputs(outputs, needs_loss=False)["pred"]
        if logits.dim() != 2 or len(logits) != len(labels) or logits.shape[1] <= max(1, *labels):
            raise ValueError(
                f"Expected logits of shape (texts, classes) with a class for each label, but got {tuple(logits.shape)} "
                f"for {len(labels)} texts with labels up to {max(labels)}. Give `step`, a function of the tokenized "
                "batch that returns such logits."
            )
        return score(logits, {"labels": torch.tensor(labels, device=logits.device)}), logits.argmax(-1)

    def _at(self, ids: Tensor) -> Tensor:
        lookups = [each for each in self.embedding_taps[0].lookups if torch.equal(each.ids, ids)]
        if not lookups:
            raise ValueError(
                f"Expected the model to look up the tokenizer's ids in embedding `{self.taps[0].name}`, and its logits "
                "to depend on them, but got no such lookup. Name the embedding that is looked up with `emb_name`."
            )
        total = torch.stack([each.grad for each in lookups if each.grad is not None]).sum(0)
        return total.to(torch.promote_types(total.dtype, torch.float32))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Byte-level tokens take the space before a word along."""
    piece = text[start:end]
    return end - len(piece.lstrip()), start + len(piece.rstrip())


def _pairs(texts: Sequence[str], labels: Sequence[int]) -> list[tuple[str, int]]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Expected `texts` to be a sequence of strings, but got {texts!r:.80}.")
    if len(texts) != len(labels):
        raise ValueError(f"Expected as many `labels` as `texts`, but got {len(labels)} for {len(texts)}.")
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    for label in labels:
        at_least(0)("labels", label)
    return list(zip(texts, labels, strict=True))


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "Expected `tokenizer` to be a fast tokenizer of transformers, which tells where in the text its tokens "
            f"stand, but got {type(tokenizer).__name__}. Load it with `AutoTokenizer.from_pretrained(...)`, wrap a "
            "`tokenizers.Tokenizer` in `PreTrainedTokenizerFast`, or a `Vocabulary` of fastNLP in "
            "`VocabularyTokenizer`."
        )
    if tokenizer.pad_token is None:
        raise ValueError(
            "Expected `tokenizer` to have a padding token, since texts are tried in batches, but got none. Set "
            "`tokenizer.pad_token = tokenizer.eos_token`, and `pad_token_id` in the model's config."
        )
