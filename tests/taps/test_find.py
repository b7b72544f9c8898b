"""Which parameters an `emb_name` stands for."""

from __future__ import annotations

import pytest
from references import bert
from torch import nn

from fastnlp_adv.taps.find import find_embeddings


class Model(nn.ModuleDict):
    def __init__(self, **parts):
        super().__init__(parts)


class Backbone(nn.Module):
    """In the manner of transformers."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(100, 4)
        self.tokens = nn.Embedding(30, 4)

    def get_input_embeddings(self):
        return self.tokens


class Says(Model):
    """Names its input embedding by a function."""

    def __init__(self, told, **parts):
        super().__init__(**parts)
        self.get_input_embeddings = told


def fails():
    raise NotImplementedError


def names(model, emb_name=None):
    return find_embeddings(model, emb_name).names()


@pytest.mark.parametrize(
    ("emb_name", "expected"),
    [
        ("encoder", ["encoder.word.weight"]),
        ("word", ["encoder.word.weight", "decoder.word.weight"]),
        ("weight", ["encoder.word.weight", "decoder.word.weight", "out.weight"]),
        ("encoder.*", ["encoder.word.weight"]),
        ("[de]*coder.w?rd.weight", ["encoder.word.weight", "decoder.word.weight"]),
    ],
)
def test_parts_of_names_and_globs_of_whole_names(emb_name, expected):
    parts = {name: Model(word=nn.Embedding(9, 2)) for name in ("encoder", "decoder")}
    model = Model(**parts, out=nn.Linear(2, 2))
    assert names(model, emb_name) == expected


def test_none_asks_the_model_or_a_part_of_it():
    assert names(Backbone()) == ["tokens.weight"]
    assert names(Model(big=nn.Embedding(1000, 4), back_bone=Backbone())) == ["back_bone.tokens.weight"]
    assert names(bert()) == ["bert.embeddings.word_embeddings.weight"]
    assert names(Model(back_bone=bert())) == ["back_bone.bert.embeddings.word_embeddings.weight"]


@pytest.mark.parametrize("told", [fails, lambda: nn.Conv2d(3, 4, 2), lambda: None], ids=["fails", "other", "none"])
def test_none_asks_further_where_a_part_cannot_tell(told):
    assert names(Says(told, back_bone=Backbone())) == ["back_bone.tokens.weight"]
    assert names(Says(told, small=nn.Embedding(3, 2), big=nn.Embedding(9, 2))) == ["big.weight"]


def test_none_takes_the_only_embedding_or_that_with_the_most_rows():
    assert names(Model(only=nn.Embedding(3, 2), out=nn.Linear(2, 2))) == ["only.weight"]
    several = Model(positions=nn.Embedding(5, 2), words=nn.Embedding(50, 2), tags=nn.Embedding(9, 2))
    assert names(several) == ["words.weight"]
    assert names(nn.Embedding(3, 2)) == ["weight"]


def test_shared_weights_are_one_embedding_with_all_its_modules():
    one, two = nn.Embedding(9, 2), nn.Embedding(9, 2)
    two.weight = one.weight
    out = nn.Linear(2, 9, bias=False)
    out.weight = one.weight
    (found,) = find_embeddings(Model(one=one, two=two, out=out)).embeddings
    assert found.name == "one.weight"
    assert found.modules == [one, two]
    assert found.weight is one.weight


def test_frozen_embeddings_match_and_frozen_parameters_do_not():
    model = Model(word=nn.Embedding(9, 2), out=nn.Linear(2, 2)).requires_grad_(False)
    assert names(model, "weight") == names(model) == ["word.weight"]
    with pytest.raises(ValueError, match="trainable parameter"):
        names(model, "out")


@pytest.mark.parametrize("emb_name", ["embed", "wor?"])
def test_no_match_lists_the_embeddings(emb_name):
    model = Model(word=nn.Embedding(9, 2), char=nn.Embedding(8, 3), out=nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got '[^']*'. The model has the embeddings `word.weight` \(9 x 2\), `char.w"):
        names(model, emb_name)


def test_no_embedding_lists_parameters():
    with pytest.raises(ValueError, match=r"an nn.Embedding, but got Linear .*`weight` \(3 x 2\), `bias` \(3\)"):
        names(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"got 'embed'. The model has no nn.Embedding; its parameters are `weight`"):
        names(nn.Linear(2, 3), "embed")


@pytest.mark.parametrize(
    "name",
    ["pos_embed", "position_embeddings", "embed_positions", "wpe", "pe", "posEmb", "PositionalEncoding", "pos_emb2"],
)
def test_a_table_of_positions_is_not_taken_for_the_words(name):
    table, words = nn.Embedding(64, 4), nn.Embedding(20, 4)
    assert names(Model(**{name: table, "words": words})) == ["words.weight"]
    assert names(Model(**{name: Model(table=table), "words": words})) == ["words.weight"]
    assert names(Model(**{name: table})) == [f"{name}.weight"]
