"""The data that the examples train on: fetched, checked, read, and split without a text on both sides."""

import csv
import http.server
import threading

import data
import datasets
import hub
import pytest
import sdist
import snippets
from hypothesis import given
from hypothesis import strategies as st

RATINGS = "\r\n".join(
    ["1\t2.5\tA  joy &amp; a ride.", "2\t-1.25\tDull, dull.", "3\t0.0\tIt exists.", '4\t-0.1\tA 9" screen; naïve.']
)
TEXTS = (["A joy & a ride.", "Dull, dull.", 'A 9" screen; naïve.'], ["positive", "negative", "negative"])
SETUP = "from setuptools import setup; setup(name='vaderSentiment', version='3.3.2', packages=[])"
TOP = "vaderSentiment-3.3.2"


@pytest.fixture
def shelf(put_on_shelf, pack):
    inner = pack({"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": RATINGS.encode()})
    return put_on_shelf("vaderSentiment", "3.3.2", {"additional_resources/hutto_ICWSM_2014.tar.gz": inner})


@pytest.fixture
def trusted(shelf, monkeypatch):
    monkeypatch.setattr(snippets, "SHA256", sdist.sha256(shelf))
    return shelf


def test_snippets_are_fetched_once_or_if_damaged_checked_and_read(trusted):
    assert snippets.load_snippets() == TEXTS
    (sdist.cache_dir() / snippets.SDIST).write_bytes(b"half a fi")
    assert snippets.load_snippets() == TEXTS
    trusted.unlink()
    assert snippets.load_snippets() == TEXTS
    assert [file.name for file in sdist.cache_dir().iterdir()] == [snippets.SDIST]


def test_another_file_of_the_same_name_is_refused_before_its_code_runs(shelf, pack, tmp_path):
    files = {f"{TOP}/setup.py": f"open({str(tmp_path / 'ran')!r}, 'w'); {SETUP}".encode()}
    shelf.write_bytes(pack(files))
    with pytest.raises(ValueError, match=rf"Expected {snippets.SDIST} to have SHA-256 {snippets.SHA256}, but pip got"):
        snippets.load_snippets()
    assert not list(sdist.cache_dir().iterdir())
    assert not (tmp_path / "ran").exists()


def test_what_pip_has_let_pass_is_checked_again(shelf, tmp_path, monkeypatch):
    careless = f"import shutil, sys; shutil.copy({str(shelf)!r}, sys.argv[-1])"
    (tmp_path / "pip.py").write_text(careless)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=rf"to have SHA-256 {snippets.SHA256}, but got {sdist.sha256(shelf)}"):
        snippets.load_snippets()
    assert not list(sdist.cache_dir().iterdir())


def test_without_the_package_the_message_is_one_line_and_names_another_way(shelf):
    shelf.unlink()
    said = "pip could not fetch vaderSentiment==3.3.2 .*`--dataset reviews.csv`"
    with pytest.raises(ConnectionError, match=said) as e:
        snippets.load_snippets()
    assert "\n" not in str(e.value)


def test_an_archive_without_the_ratings_is_refused(pack, tmp_path):
    archive = tmp_path / snippets.SDIST
    inner = pack({"hutto_ICWSM_2014/tweets_GroundTruth.txt": b""})
    archive.write_bytes(pack({f"{TOP}/{snippets.INNER_ARCHIVE}": inner}))
    with pytest.raises(ValueError, match=r"movieReviewSnippets_GroundTruth\.txt"):
        snippets.read_ratings(archive)


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTNLP_ADV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sdist.cache_dir() == tmp_path / "fastnlp_adv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sdist.cache_dir() == tmp_path / ".cache" / "fastnlp_adv"


def table(path, rows, header=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=data.DELIMITERS[path.suffix]).writerows([header, *rows])
    return path


@pytest.mark.parametrize("name", ["reviews.csv", "reviews.tsv", "REVIEWS.CSV"])
def test_tables_are_read_with_quotes_tabs_and_lines_inside_texts(tmp_path, name):
    texts, labels = ['"Good", she\nsaid', "a\tb", "NA", "007"], ["yes", "no", "no", "yes"]
    path = tmp_path / name
    table(tmp_path / name.lower(), zip(labels, texts, strict=True), header=("label", "text")).rename(path)
    assert data.read_table(path) == (texts, labels)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbftext,label\nfine,1\n")
    assert data.read_table(path) == (["fine"], ["1"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"sentence,label\nfine,1\n", r"have the columns `text` and `label`, but got \['sentence', 'label'\]"),
        (b"", r"have the columns `text` and `label`, but got \[\]"),
        (b"text,label\nfine,1\nlabel missing\n", "a text and a label, but row 2 has not"),
        (b"text,label\n,1\n", "a text and a label, but row 1 has not"),
        (b"text,label\ncaf\xe9,1\n", "be a table in UTF-8"),
        (b'text,label\n"never closed,1\n', "be a table in UTF-8"),
        (b"text,label\none,1\ntwo,0\n", "5 different texts at least, but got 2"),
        (b"text,label\na,1\nb,1\nc,1\nd,1\ne,1\n", r"two or more classes as labels, but got \['1'\]"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "reviews.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"Expected .*{reason}"):
        data.load_data(str(path))


rows_with_repeats = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["good", "bad"])), min_size=12)


@given(rows=rows_with_repeats, seed=st.randoms())
def test_equal_texts_never_stand_on_both_sides_and_the_order_of_rows_is_no_matter(tmp_path_factory, rows, seed):
    rows = [*rows, *(("A ", "good"), ("b", "bad"), (" C", "good"), ("d", "bad"), ("e", "good"))]
    folder = tmp_path_factory.mktemp("rows")
    split = data.load_data(str(table(folder / "a.csv", rows)))
    seed.shuffle(rows)
    again = data.load_data(str(table(folder / "b.csv", rows)))

    def key(text):
        return text.lower().strip()

    train, test = ({key(text) for text in part["text"]} for part in (split.train, split.test))
    assert not train & test
    assert len(split.train) + len(split.test) == len(rows)
    assert len(test) == max(1, round(len(train | test) / 5))
    assert sorted(again.test["text"]) == sorted(split.test["text"])
    assert set(split.train["label"]) | set(split.test["label"]) == {0, 1} == set(range(split.num_labels))


def test_fewer_rows_are_the_first_of_more_rows(tmp_path):
    path = table(tmp_path / "a.csv", [(f"text {i}", i % 2) for i in range(50)])
    whole, part = data.load_data(str(path)), data.load_data(str(path), train_size=7)
    assert part.train[:] == whole.train[:7]
    assert part.test[:] == whole.test[:]
    assert len(data.load_data(str(path), train_size=1000).train) == len(whole.train) == 40


@pytest.fixture
def hub_copy(tmp_path, monkeypatch):
    """GLUE's layout in the folder ``glue``, where ``load_dataset`` looks before it asks the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "glue"
    folder.mkdir()
    header = ("sentence", "label", "idx")
    table(folder / "train.csv", [(f"text {i}", i // 5, i) for i in range(10)], header)
    table(folder / "validation.csv", [("fine", 1, 0), ("poor", 0, 1)], header)
    table(folder / "test.csv", [("hidden", -1, 0)], header)
    splits = "".join(f"  - split: {name}\n    path: {name}.csv\n" for name in ("train", "validation", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: sst2\n  data_files:\n{splits}---\n")
    return folder


def test_glue_is_mixed_and_evaluated_on_the_split_whose_labels_are_known(hub_copy):
    loaded = data.load_data("glue/sst2")
    assert sorted(loaded.test["text"]) == ["fine", "poor"]
    assert sorted(loaded.train["text"]) == sorted(f"text {i}" for i in range(10))
    assert dict(zip(loaded.train["text"], loaded.train["label"], strict=True))["text 7"] == 1
    assert "validation" in loaded.source
    assert loaded.num_labels == 2
    assert set(data.load_data("glue:sst2", train_size=6).train["label"]) == {0, 1}  # sorted data are mixed first


@pytest.mark.parametrize(
    ("header", "reason"),
    [(("question", "label", "idx"), "`sentence`"), (("text", "stars", "idx"), "`label`")],
)
def test_hub_data_without_text_or_label_are_refused_with_the_columns(hub_copy, header, reason):
    for name in ("train", "validation", "test"):
        table(hub_copy / f"{name}.csv", [("fine", 1, 0)], header)
    with pytest.raises(ValueError, match=rf"{reason}.*'{header[0]}', '{header[1]}'"):
        data.load_data("glue/sst2")


def test_hub_data_without_labels_to_evaluate_on_are_refused(hub_copy):
    table(hub_copy / "validation.csv", [("hidden", -1, 0)], ("sentence", "label", "idx"))
    with pytest.raises(ValueError, match="a labelled test or validation split"):
        data.load_data("glue/sst2")


def test_an_unknown_configuration_is_one_line(hub_copy):
    with pytest.raises(ValueError, match="Cannot load `--dataset glue/no_such_task`") as error:
        data.load_data("glue/no_such_task")
    assert "\n" not in str(error.value)


@pytest.fixture
def online(monkeypatch):
    """The hub's client as it starts without ``HF_HUB_OFFLINE``."""
    monkeypatch.setattr(hub.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return monkeypatch


def test_an_unreachable_hub_is_said_in_one_line_that_names_the_default(online):
    online.setattr(hub.hub, "ENDPOINT", "http://127.0.0.1:9")  # the port for discarding: nobody listens
    with pytest.raises(ConnectionError, match=r"hub cannot be reached.*`--dataset snippets`, the default") as error:
        data.load_data("nobody/no_such_data")
    assert "\n" not in str(error.value)


def test_a_hub_that_answers_with_an_error_is_reachable(online):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # answers 501 to anything
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online.setattr(hub.hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert not hub.offline()
    server.shutdown()
    server.server_close()
