"""Doubling a batch, halving outputs, and taking a part, field by field."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence
from transformers import BatchEncoding

from fastnlp_adv.batch import Part, count_examples, double_batch, first_half, take_part

Pair = namedtuple("Pair", "words target")
KEYS = st.one_of(st.text("abc", min_size=1), st.integers(0, 9), st.tuples(st.integers(0, 3)))
DATA = np.random.default_rng(0).integers(0, 100, (5, 2))

# A field is a function of the indices of the examples that it holds; lists of such functions hold fields.
TENSORS = st.sampled_from(
    [
        lambda rows: torch.tensor(DATA)[list(rows)],
        lambda rows: torch.tensor([i / 2 for i in rows], dtype=torch.float64),
        lambda rows: DATA[list(rows)],
    ]
)
LISTS = st.sampled_from(
    [
        lambda rows: ["a" * i for i in rows],
        lambda rows: tuple([i] * i for i in rows),
        lambda rows: [{"id": i} for i in rows],
    ]
)
SCALARS = st.sampled_from([None, "text", 0.5, torch.tensor(2.0)]).map(lambda value: lambda rows: value)


def sequences(fields):
    listed = st.lists(fields, min_size=1, max_size=3)
    kinds = st.sampled_from([list, tuple, lambda fields: Pair(fields[0], fields[-1])])
    return st.tuples(kinds, listed).map(lambda drawn: lambda rows: drawn[0]([field(rows) for field in drawn[1]]))


def dicts(fields):
    kinds, items = st.sampled_from([dict, OrderedDict]), st.dictionaries(KEYS, fields, max_size=3)
    return st.tuples(kinds, items).map(
        lambda drawn: lambda rows: drawn[0]((key, field(rows)) for key, field in drawn[1].items())
    )


NESTED = st.recursive(st.one_of(TENSORS, LISTS, SCALARS, sequences(TENSORS)), dicts, max_leaves=8)
BATCHES = st.tuples(st.dictionaries(KEYS, NESTED, min_size=1, max_size=4), TENSORS).map(
    lambda drawn: lambda rows: {**{key: field(rows) for key, field in drawn[0].items()}, "x": drawn[1](rows)}
)


def plain(value, kind=None):
    """The value with types and contents, to be compared by ``==``; with a kind, all dicts are of it."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value), str(value.dtype), value.tolist()
    if isinstance(value, dict):
        return kind or type(value), [(key, plain(item, kind)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [plain(item, kind) for item in value]
    return value


@settings(max_examples=200, deadline=None)
@given(BATCHES, st.lists(st.integers(0, 4), max_size=5, unique=True), st.data())
def test_nested_batches_are_those_built_from_the_examples(build, rows, data):
    """Doubling and taking give the batch built from these examples; halving undoes doubling."""
    chosen = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))) if rows else []
    batch = build(rows)
    before = plain(batch)
    assert count_examples(batch, "Do this.") == len(rows)
    doubled, counted = double_batch(batch)
    assert (plain(doubled), counted) == (plain(build(rows + rows)), len(rows))
    assert plain(first_half(doubled, len(rows))) == plain(batch, dict)
    taken = take_part(batch, Part(torch.tensor(chosen, dtype=torch.long), of=len(rows)), "Do this.")
    assert plain(taken) == plain(build([rows[i] for i in chosen]))
    assert plain(batch) == before


@pytest.mark.parametrize("keys", [(1, 2), ("one", "two"), ((1,), (2,)), ("1]", "[2")], ids=str)
def test_a_key_of_a_dict_is_no_place_in_a_list(keys):
    """Tensors of nested dicts tell the number of examples, for any kind of keys."""
    batch = {"a": {key: torch.zeros(4) for key in keys}, "b": torch.zeros(3)}
    assert count_examples(batch, "Do this.") == 4
    message = refusal(batch)
    assert f"got shape (3,) for `batch['b']`, where `batch['a'][{keys[0]!r}]` has 4 rows" in message
    assert "A list of tensors" not in message
    del batch["a"][keys[0]]
    batch.update(c=torch.zeros(3))
    message = refusal(batch)
    assert f"for `batch['a'][{keys[1]!r}]`" in message and "A list of tensors" not in message


def test_what_has_no_part_is_refused_by_name_with_the_way_out():
    batch = {"x": torch.zeros(3), "y": pack_sequence([torch.zeros(2)])}
    with pytest.raises(ValueError, match=r"`batch\['y'\]`, where `batch\['x'\]` has 3 rows: no part .* Do this\."):
        take_part(batch, Part(torch.tensor([1]), of=3), "Do this.")


@pytest.mark.parametrize(
    "value", [None, "text", b"bytes", True, 3, 0.5, torch.tensor(2.0), np.float32(1), np.array(1), np.str_("s")]
)
def test_what_belongs_to_no_example_stays(value):
    batch = {"x": torch.zeros(3, 2), "extra": value}
    doubled, _ = double_batch(batch)
    assert doubled["extra"] is value


def test_dtype_device_and_graph_are_kept():
    x = torch.ones(2, 3, requires_grad=True)
    doubled, _ = double_batch({"x": x, "y": torch.ones(2, dtype=torch.int16)})
    assert doubled["y"].dtype == torch.int16
    doubled["x"].sum().backward()
    assert (x.grad == 2).all()
    meta, rows = double_batch(torch.ones(2, 3, device="meta"))
    assert (meta.shape, rows) == ((4, 3), 2)


@pytest.mark.parametrize(
    "make",
    [UserDict, BatchEncoding, lambda items: defaultdict(list, items)],
    ids=["UserDict", "BatchEncoding", "defaultdict"],
)
def test_dicts_keep_their_type(make):
    batch = make({"x": torch.tensor([1, 2])})
    doubled, taken = double_batch(batch)[0], take_part(batch, Part(torch.tensor([1]), of=2), "Do this.")
    assert type(doubled) is type(taken) is type(batch)
    assert [each["x"].tolist() for each in (doubled, taken, batch)] == [[1, 2, 1, 2], [2], [1, 2]]


def test_a_sequence_of_fields():
    x, y = torch.tensor([[1], [2], [3]]), torch.tensor([4, 5, 6])
    for batch in [(x, y), [x, y], Pair(x, y)]:
        doubled, rows = double_batch(batch)
        assert type(doubled) is type(batch)
        assert [f.tolist() for f in doubled] == [x.tolist() * 2, y.tolist() * 2]
        assert rows == 3
    doubled, rows = double_batch((x[:2], y[:2]))  # as many fields as examples
    assert [len(f) for f in doubled] == [4, 4]
    assert rows == 2


SIZES = pytest.mark.parametrize("rows", [1, 2, 5])


@SIZES
@pytest.mark.parametrize("kind", [list, tuple, lambda items: Pair(*items)], ids=["list", "tuple", "named"])
def test_a_sequence_of_tensors_holds_fields_for_every_batch_size(rows, kind):
    """As default_collate makes of a field of several numbers: tensors with all the rows."""
    spans = kind([torch.arange(rows), torch.arange(rows) + 10])
    for batch in ({"spans": spans, "x": torch.zeros(rows, 2)}, {"spans": spans}, {"nested": {"x": [spans, None]}}):
        doubled, counted = double_batch(batch)
        found = doubled["spans"] if "spans" in doubled else doubled["nested"]["x"][0]
        assert counted == rows
        assert type(found) is type(spans)
        assert [s.tolist() for s in found] == [s.tolist() * 2 for s in spans]


@SIZES
@pytest.mark.parametrize(
    "entry",
    [
        lambda i: "a" * i,
        lambda i: [1] * i,
        lambda i: [1, 2],
        lambda i: (1, 2, 3),
        lambda i: {"boxes": torch.ones(i)},
        torch.tensor,
    ],
    ids=["texts", "ragged lists", "pairs", "triples", "dicts", "numbers"],
)
def test_other_lists_have_an_entry_for_each_example_for_every_batch_size(rows, entry):
    entries = [entry(i) for i in range(rows)]
    doubled, counted = double_batch({"entries": entries, "x": torch.zeros(rows, 2)})
    assert counted == rows
    assert [id(e) for e in doubled["entries"]] == [id(e) for e in entries * 2]
    assert [id(e) for e in first_half(entries * 2, rows)] == [id(e) for e in entries]
    assert "`batch['entries']`" in refusal({"entries": [*entries, entry(rows)], "x": torch.zeros(rows, 2)})


def refusal(batch):
    with pytest.raises(ValueError, match=r"mode='two_pass'") as caught:
        double_batch(batch)
    return str(caught.value)


def test_the_field_that_does_not_fit_is_named():
    batch = {"weights": torch.ones(3), "x": torch.zeros(4, 2), "labels": torch.zeros(4)}
    assert "got shape (3,) for `batch['weights']`, where `batch['x']` has 4 rows" in refusal(batch)
    assert "got list of length 3 for `batch['text']`" in refusal({"x": torch.zeros(4), "text": ["a", "b", "c"]})
    assert "got shape (2, 1) for `batch['in']['ids']`" in refusal(
        {"in": {"ids": torch.zeros(2, 1)}, "x": torch.zeros(4), "y": torch.zeros(4)}
    )
    assert "got shape (3,) for `batch[1]`" in refusal((torch.zeros(4), torch.zeros(3)))


@pytest.mark.parametrize("batch", [{}, {"scale": 1.0}, None, 3, object(), "text"])
def test_a_batch_without_fields_is_refused(batch):
    assert refusal(batch).startswith("Expected the batch to hold tensors or lists")


def test_outputs_are_halved_where_it_is_clear():
    kept = {"loss": torch.tensor(1.0), "weights": torch.arange(5), "words": ["a"] * 5, "name": "abcdef", "count": 6}
    outputs = {"pred": torch.arange(12).view(6, 2), "hidden": (torch.arange(6), np.arange(6) * 2), "texts": [*"abcdef"]}
    half = first_half({**kept, **outputs}, rows=3)
    assert all(half[key] is value for key, value in kept.items())
    assert half["pred"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert [each.tolist() for each in half["hidden"]] == [[0, 1, 2], [0, 2, 4]]
    assert half["texts"] == ["a", "b", "c"]
