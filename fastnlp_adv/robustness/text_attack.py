"""The base of attacks on text: rounds of changes that are tried on the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..options import at_least, check_count, must_be, one_of, option, optional, options
from ..regularizers.outputs import read_outputs
from ..taps import Tap, taps_on
from .evaluate import modes_kept, score
from .results import Attacked
from .texts import Change, Search, Tokens
from .worst_case import EvaluationAttack, Scores


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"Expected `{name}` to be a fast tokenizer of transformers, which gives the positions of tokens in "
            f"the text, but got {type(tokenizer).__name__}. Load it with `AutoTokenizer.from_pretrained(...)`, wrap a "
            "`tokenizers.Tokenizer` in `PreTrainedTokenizerFast`, or a `Vocabulary` of fastNLP in "
            "`VocabularyTokenizer`."
        )
    if tokenizer.pad_token is None:
        raise ValueError(
            f"Expected `{name}` to have a padding token, since texts are tried in batches, but got none. Set "
            "`tokenizer.pad_token = tokenizer.eos_token`, and `pad_token_id` in the model's config."
        )


@options
class TextAttack(EvaluationAttack, ABC):
    """
    The base of attacks on text, which search for changes that make the prediction wrong. A subclass defines
    :meth:`propose`. The texts of a batch advance together: in a round each text gets some changes proposed, all of them
    are tried on the model, and the worst is kept if it raises the loss; changes that overlap with earlier ones are left
    out. A text is done when the prediction is wrong, ``limit`` changes are made, or no change of a round raises the
    loss (with ``gives_up = False``, when none is proposed).

    :param model: the model; it is in eval mode during an attack only.
    :options:
    :raises ValueError: if an argument is out of range, or the tokenizer is not a fast one.

    Example, for a model and a tokenizer of yours::

        class LeaveOut(TextAttack):
            limit = 2

            def propose(self, search):
                return [Change(start, end, "") for start, end in word_spans(search.original)]

        LeaveOut(model, tokenizer).attack(texts, labels)
    """

    fixed: ClassVar[frozenset[str]] = frozenset({"emb_name", "tokenizer"})
    #: whether a text is done when no change of a round raises its loss
    gives_up: ClassVar[bool] = True
    #: when ``search.tokens`` is set, with gradients: before the first round, before each, or never
    gradients: ClassVar[Literal["first", "each", "never"]] = "never"

    tokenizer: Any = option(
        default=None,
        check=_check_tokenizer,
        doc="a fast tokenizer of transformers, or a :class:`~fastnlp_adv.VocabularyTokenizer`",
        kw_only=False,
    )
    side: Literal["first", "second"] | None = option(
        default=None,
        check=one_of(None, "first", "second"),
        doc='for pairs of texts, such as premise and hypothesis: which of the two is attacked, ``"first"`` or '
        '``"second"``; the other stays. ``None`` for single texts',
    )
    batch_size: int = option(default=32, check=check_count, doc="the number of texts that advance together")
    max_length: int | None = option(
        default=None,
        check=optional(check_count),
        doc="where texts are cut off, in tokens; the tokenizer's own if ``None``",
    )
    step: Callable[[dict[str, Any]], Any] | None = option(
        default=None,
        check=must_be("a function of the tokenized batch or None", lambda value: value is None or callable(value)),
        doc="a function of the tokenized batch, a dict of tensors with ``attention_mask``, that returns logits, or a "
        "dict, dataclass or ``ModelOutput`` with ``pred`` or ``logits``; ``model(**batch)`` if ``None``",
    )

    @property
    def limit(self) -> int:
        """The number of changes that a text may get; a subclass may set ``limit = 2`` instead."""
        return 3

    @abstractmethod
    def propose(self, search: Search) -> Iterable[Change]:
        """
        Propose the changes of a text to try next.

        :param search: the search for the text, which is still predicted right.
        :return: the changes, in terms of the original; none ends the search.
        """

    def prepare(self, texts: list[str]) -> None:
        """Prepare for all texts of an attack, before the first of them is attacked."""

    def validate(self) -> None:
        super().validate()
        least = at_least(self.tokenizer.num_special_tokens_to_add(pair=self.side is not None) + 1)
        optional(least)("max_length", self.max_length)

    def find_taps(self, model: nn.Module) -> list[Tap]:
        taps = taps_on(model, self.emb_name, "token")
        if len(taps) != 1:
            names = ", ".join(f"`{tap.name}`" for tap in taps)
            raise ValueError(f"Expected `emb_name` to match one embedding, but got {names}. Give more of its name.")
        return taps

    def attack(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        labels: Sequence[int],
        progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
    ) -> list[Attacked]:
        """
        Attack texts.

        :param texts: the texts, or pairs of texts with ``side``.
        :param labels: the label of each, an integer.
        :param progress: wraps the batches of texts, for instance ``tqdm.tqdm``; nothing is shown without one.
        :return: the result for each text.
        :raises ValueError: if there are not as many labels as texts, or the model's outputs do not fit them.
        """
        searches = _searches(texts, labels, self.side)
        self.prepare([search.original for search in searches])
        batches = [searches[i : i + self.batch_size] for i in range(0, len(searches), self.batch_size)]
        with modes_kept(self.attached), self.running():
            self.attached.eval()
            for batch in batches if progress is None else progress(batches):
                self._attack(batch)
        return [search.result() for search in searches]

    def ids(self, search: Search, texts: list[str]) -> list[list[int]]:
        """
        Return the ids that the model would be given for other texts, without padding.

        :param search: the search for one text.
        :param texts: the texts in its place.
        """
        if not texts:
            return []
        encoded = self.tokenizer(*self._inputs([(search, text) for text in texts]), **self._cut())
        found: list[list[int]] = encoded[self._field(encoded, "input_ids")]
        return found

    def special_ids(self) -> set[int]:
        """Return the ids of special and added tokens."""
        return {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}

    def _attack(self, searches: list[Search]) -> None:
        asked = [(search, search.original) for search in searches]
        for search, answer in zip(searches, self._query(asked), strict=True):
            search.loss, search.prediction = answer
        left = [search for search in searches if search.prediction == search.label]
        while left:
            self._read(left)
            left = self._round(left)
        for search in searches:
            search.tokens = None  # gradients take memory

    def _read(self, searches: list[Search]) -> None:
        """Set the tokens of the texts that need them, by one forward and backward pass."""
        read = {"first": [each for each in searches if each.tokens is None], "each": searches, "never": []}
        searches = read[self.gradients]
        if not searches:
            return
        batch, spans = self._encode([(search, search.text) for search in searches])
        self.backward(self.run(lambda: self._score(batch, searches)[0]))
        ids, mask = (batch[self._field(batch, name)] for name in ("input_ids", "attention_mask"))
        gradients = self._gradients(ids, batch)
        for search, own_ids, where, real, own in zip(searches, ids, spans, mask.bool(), gradients, strict=True):
            search.queries += 1
            places = [_stripped(search.text, *span) for span, kept in zip(where, real.tolist(), strict=True) if kept]
            search.tokens = Tokens(own_ids[real].tolist(), places, own[real])

    def _round(self, searches: list[Search]) -> list[Search]:
        """Try changes of all texts, and return the texts whose search continues."""
        tries = [(s, [each for each in self.propose(s) if s.leaves(each.start, each.end)]) for s in searches]
        answers = iter(self._query([(search, search.changed(change)) for search, each in tries for change in each]))
        left = []
        for search, changes in tries:
            search.tried += len(changes)
            tried = [(change, *next(answers)) for change in changes]
            rising = [each for each in tried if each[1] > search.loss]
            if rising:
                change, search.loss, search.prediction = max(rising, key=lambda t: (t[2] != search.label, t[1]))
                search.changes = (*search.changes, change)
            if changes and (rising or not self.gives_up):
                left.append(search)
        return [each for each in left if each.prediction == each.label and len(each.changes) < self.limit]

    def _query(self, asked: list[tuple[Search, str]]) -> list[tuple[float, int]]:
        """Return loss and prediction for each text of a search; texts of a similar length share a batch."""
        order = sorted(range(len(asked)), key=lambda i: len(asked[i][1]) + len(asked[i][0].other or ""))
        answers: dict[int, tuple[float, int]] = {}
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch, _ = self._encode([asked[i] for i in rows])
            with torch.no_grad():
                scores, predictions = self._score(batch, [asked[i][0] for i in rows])
            answers.update(zip(rows, zip(scores.losses.tolist(), predictions.tolist(), strict=True), strict=True))
        for search, _ in asked:
            search.queries += 1
        return [answers[i] for i in range(len(asked))]

    def _cut(self) -> dict[str, Any]:
        length = self.max_length or self.tokenizer.model_max_length
        # a tokenizer without a length has one of 30 digits
        return {"truncation": True, "max_length": length} if length < 10**9 else {}

    def _inputs(self, asked: list[tuple[Search, str]]) -> list[Any]:
        """Return the texts as the tokenizer takes them, with the other texts of pairs."""
        texts, others = [text for _, text in asked], [search.other for search, _ in asked]
        return [texts] if self.side is None else [texts, others] if self.side == "first" else [others, texts]

    def _field(self, encoded: Mapping[str, Any], name: str) -> str:
        """Return the field of the attacked text, if the tokenizer reads the texts of a pair separately."""
        return f"pair_{name}" if self.side == "second" and f"pair_{name}" in encoded else name

    def _encode(self, asked: list[tuple[Search, str]]) -> tuple[dict[str, Tensor], list[list[tuple[int, int]]]]:
        """Return the batch and the span of each token in the attacked text; (0, 0) for tokens of the other."""
        fields = {"return_attention_mask": True, "return_offsets_mapping": True, "return_tensors": "pt"}
        encoded = self.tokenizer(*self._inputs(asked), **self._cut(), padding=True, **fields)
        device = next(self.attached.parameters()).device
        spans = encoded[self._field(encoded, "offset_mapping")].tolist()
        if self.side is not None and "pair_input_ids" not in encoded:
            own = ("first", "second").index(self.side)
            for row, each in enumerate(spans):
                of = encoded.sequence_ids(row)
                each[:] = [span if side == own else (0, 0) for span, side in zip(each, of, strict=True)]
        batch = {name: value.to(device) for name, value in encoded.items() if not name.endswith("offset_mapping")}
        return batch, spans

    def _score(self, batch: dict[str, Tensor], searches: list[Search]) -> tuple[Scores, Tensor]:
        labels = [search.label for search in searches]
        outputs = self.attached(**batch) if self.step is None else self.step(batch)
        logits = outputs if isinstance(outputs, Tensor) else read_outputs(outputs, needs_loss=False)["pred"]
        if logits.dim() != 2 or len(logits) != len(labels) or logits.shape[1] <= max(1, *labels):
            raise ValueError(
                f"Expected logits of shape (texts, classes) with a class for each label, but got {tuple(logits.shape)} "
                f"for {len(labels)} texts with labels up to {max(labels)}. Give `step`, a function of the tokenized "
                "batch that returns such logits."
            )
        return score(logits, {"labels": torch.tensor(labels)}), logits.argmax(-1)

    def _gradients(self, ids: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the gradients at the lookups of these ids."""
        lookups = [each for each in self.embedding_taps[0].lookups if torch.equal(each.ids, ids)]
        if "pair_input_ids" in batch and torch.equal(batch["input_ids"], batch["pair_input_ids"]):
            lookups = lookups[0 if self.side == "first" else 1 :: 2]  # equal texts; the first is looked up first
        if not lookups:
            raise ValueError(
                f"Expected the model to look up the tokenizer's ids in embedding `{self.taps[0].name}`, and its logits "
                "to depend on them, but got no such lookup. Name the embedding that is looked up with `emb_name`."
            )
        total = torch.stack([each.grad for each in lookups if each.grad is not None]).sum(0)
        return total.to(torch.promote_types(total.dtype, torch.float32))


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the space before a word, which byte-level tokens include."""
    piece = text[start:end]
    return end - len(piece.lstrip()), start + len(piece.rstrip())


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _searches(texts: Sequence[Any], labels: Sequence[int], side: str | None) -> list[Search]:
    if isinstance(texts, str) or not all(isinstance(each, str) if side is None else _is_pair(each) for each in texts):
        expected, way_out = "strings", "For pairs, name the attacked text with `side`"
        if side is not None:
            expected, way_out = "pairs of strings", "For single texts, leave `side` out"
        raise ValueError(f"Expected `texts` to be a sequence of {expected}, but got {texts!r:.80}. {way_out}.")
    if len(texts) != len(labels):
        raise ValueError(f"Expected as many `labels` as `texts`, but got {len(labels)} for {len(texts)}.")
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    for label in labels:
        at_least(0)("labels", label)
    pairs = [(text, None) if side is None else text if side == "first" else text[::-1] for text in texts]
    return [Search(text, label, other) for (text, other), label in zip(pairs, labels, strict=True)]
