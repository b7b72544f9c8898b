"""The Chinese examples and their study from end to end, on small data."""

import csv
import importlib.util
import itertools
import random

import chinese_data
import chinese_ner
import chinese_reviews
import pytest
import torch
from fastNLP.modules.torch import ConditionalRandomField

from studies.command import main
from studies.edits import worst_texts
from studies.runs import read_runs
from studies.tasks import chinese

needs_pypinyin = pytest.mark.skipif(importlib.util.find_spec("pypinyin") is None, reason="pypinyin is not installed")
METHODS = ["plain", "FGM", "PGD", "R-Drop", "FGM + R-Drop"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Reviews that are good when they say 好, with characters around."""
    chooser = random.Random(0)
    texts = sorted({"".join(chooser.choices("这书房间真的很太有点", k=6)) + word for word in "好差" * 40})
    file = tmp_path_factory.mktemp("chinese") / "reviews.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((text, int(text[-1] == "好")) for text in texts)])
    return file


@pytest.fixture
def newspaper(monkeypatch):
    """Sentences in which persons go to places."""
    chooser = random.Random(0)

    def sentence():
        name, place = (chooser.choice(several) for several in (["江泽民", "李鹏", "王小明"], ["北京", "上海", "广州"]))
        text = chooser.choice(["今天", "昨天", "据说"]) + name + "到了" + place
        tags = ["O", "O", "B-PER", *["I-PER"] * (len(name) - 1), "O", "O", "B-LOC", "I-LOC"]
        return list(text), tags

    tagged = chinese_data.Tagged([sentence() for _ in range(60)], [sentence() for _ in range(20)], "made up")
    for module in (chinese_ner, chinese):
        monkeypatch.setattr(module, "load_tagged", lambda train_size=None: tagged)
    return tagged


@needs_pypinyin
def test_reviews_are_learned_by_every_method_and_attacked(reviews, tmp_path, capsys):
    page = tmp_path / "report.html"
    words = f"--dataset {reviews} --epochs 8 --batch-size 8 --lr 0.01 --attack 6 --report {page}"
    results = chinese_reviews.main(words.split())
    out = capsys.readouterr().out
    assert [result.method for result in results] == METHODS
    assert all(result.accuracy == 1 for result in results)
    assert out.count("texts right after 2 typos") == 5
    assert page.read_text(encoding="utf-8").count("<article") == 6


def test_entities_are_learned_by_every_method(newspaper, capsys):
    rows = chinese_ner.main(["--epochs", "6", "--batch-size", "8", "--lr", "0.04"])
    assert list(rows) == METHODS
    assert all(row["f"] > 0.9 for row in rows.values())
    assert "F1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "wrong", "reason"),
    [
        (chinese_reviews, "--methods SGD", "`--methods` to be of plain, FGM"),
        (chinese_reviews, "--report x.html", "`--attack` beside `--report`"),
        (chinese_reviews, "--dataset absent.csv", "there is no file absent.csv"),
        (chinese_ner, "--methods SGD", "`--methods` to be of plain, FGM"),
        (chinese_ner, "--epsilon -1", "`epsilon`"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(script, wrong, reason, newspaper, refused):
    assert reason in refused(script.main, wrong.rsplit(" ", 1))


def every_sequence(crf, emissions):
    """The logarithm of the probability of each sequence of tags, by the definition."""
    scores = []
    for tags in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        score = crf.start_scores[tags[0]] + crf.end_scores[tags[-1]]
        score = score + sum(emissions[i, tag] for i, tag in enumerate(tags))
        scores.append(score + sum(crf.trans_m[tags[i - 1], tags[i]] for i in range(1, len(tags))))
    return torch.stack(scores).log_softmax(0)


def test_the_divergence_of_sequences_is_that_over_all_sequences():
    """Its value and its gradients, against a sum over all sequences; and padding changes nothing."""
    torch.manual_seed(0)
    crf = ConditionalRandomField(3, include_start_end_trans=True).double()
    lengths = torch.tensor([4, 2])
    mask = torch.arange(4) < lengths.unsqueeze(1)
    target = torch.randint(0, 3, (2, 4))
    both = [torch.randn(2, 4, 3, dtype=torch.double, requires_grad=True) for _ in range(2)]
    pred = []
    for emissions in both:
        (slopes,) = torch.autograd.grad(crf(emissions, target, mask).sum(), emissions, create_graph=True)
        pred.append(torch.cat([emissions, slopes], -1))
    found = chinese_ner.sequence_divergence(*pred)[mask].sum()
    expected = 0
    for row, length in enumerate(lengths.tolist()):
        p, q = (every_sequence(crf, emissions[row, :length]) for emissions in both)
        expected = expected + ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    parameters = [*both, crf.trans_m, crf.start_scores, crf.end_scores]
    mine, theirs = (torch.autograd.grad(total, parameters, retain_graph=True) for total in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(mine, theirs, strict=True))


def test_the_worst_of_all_edits_is_kept_and_tags_stay_right():
    text, tags = "江泽民今天到了北京", ["B-PER", "I-PER", "I-PER", "O", "O", "O", "O", "B-LOC", "I-LOC"]

    def loss(each):  # the places of the characters, weighed by the text
        return float(sum((i + 1) * ord(c) for i, c in enumerate(each)))

    def losses(_, texts):
        return [loss(each) for each in texts]

    (one,), _ = worst_texts([text], [tags], losses, "swap", 2, 100)
    allowed = [0, 1, 3, 4, 5, 7]
    swapped = [text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in allowed]
    assert one == max([text, *swapped], key=loss)
    assert worst_texts(["……", "a"], None, losses, "swap", 1, 5) == [[None, None]]


@needs_pypinyin
@pytest.mark.parametrize("task", ["reviews", "ner"])
def test_the_study_runs_and_resumes(task, reviews, newspaper, tmp_path, refused):
    words = f"{task} --train-size 30 --epochs 2 --attack-size 10 --candidates 4 --output-dir {tmp_path} --jobs 1"
    words = [*words.split(), "--seeds", "2", *(("--dataset", str(reviews)) if task == "reviews" else ())]
    main([*words, "--methods", "plain, FGM"])
    before = (tmp_path / "runs.csv").read_text()
    main([*words, "--methods", "plain, FGM, gradient penalty, R-Drop"])
    assert (tmp_path / "runs.csv").read_text().startswith(before)
    runs = read_runs(tmp_path)
    assert len(runs.rows) == 8 and runs.outcomes.keys() == runs.rows.keys()
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "| gradient penalty | 2 |" in page and "swapped: 1 | swapped: 2 | homophones: 1" in page and "{" not in page
    assert "lr=" in refused(main, [*words, "--lr", "0.5"])
