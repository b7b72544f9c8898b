"""R-Drop against loops that are written as the papers and tutorials have them."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass

import pytest
import torch
import torch.nn.functional as F
from smoothness import both
from support import bert_config
from torch import nn
from transformers import BertForSequenceClassification
from transformers.utils import ModelOutput

from fastnlp_adv.regularizers import RDrop, has_dropout

both_modes = pytest.mark.parametrize("mode", ["concat", "two_pass"])
ROWS, CLASSES = 6, 4
#: positions that count
KEPT = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 1]])


class Net(nn.Module):
    def __init__(self, dropout=0.5, out=CLASSES):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, out))

    def forward(self, x):
        return self.layers(x)


def make(dropout=0.5, out=CLASSES, dtype=torch.float64, shape=(ROWS,)):
    torch.manual_seed(0)
    net = Net(dropout, out).to(dtype)
    batch = {"x": torch.randn(*shape, 5, dtype=dtype), "labels": torch.randint(0, CLASSES, shape)}
    return net, batch


def step_of(net):
    def step(batch):
        pred = net(batch["x"])
        return {"loss": F.cross_entropy(pred.flatten(0, -2), batch["labels"].flatten()), "pred": pred}

    return step


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()))


def kl_as_written_in_tutorials(p, q):
    p_loss = F.kl_div(F.log_softmax(p, dim=-1), F.softmax(q, dim=-1), reduction="sum")
    q_loss = F.kl_div(F.log_softmax(q, dim=-1), F.softmax(p, dim=-1), reduction="sum")
    return (p_loss + q_loss) / 2


@both_modes
@pytest.mark.parametrize("kl_weight", [0.0, 3.0])
@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("batchmean", ROWS), ("mean", ROWS * CLASSES)])
def test_it_equals_two_predictions_written_out(reduction, divisor, kl_weight, mode):
    net, batch = make()
    torch.manual_seed(1)
    found = RDrop(kl_weight=kl_weight, reduction=reduction, mode=mode)(step_of(net), batch)
    torch.manual_seed(1)
    if mode == "concat":
        pred, pred2 = net(torch.cat([batch["x"], batch["x"]])).chunk(2)
    else:
        pred, pred2 = net(batch["x"]), net(batch["x"])
    ce = 0.5 * (F.cross_entropy(pred, batch["labels"]) + F.cross_entropy(pred2, batch["labels"]))
    kl = kl_as_written_in_tutorials(pred, pred2) / divisor
    loss = ce + kl_weight * kl

    torch.testing.assert_close([found["pred"], found["pred2"]], [pred, pred2], rtol=0, atol=0)
    torch.testing.assert_close([found["loss"], found["kl"]], [loss, kl.detach()], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(net, found["loss"]), gradients(net, loss), rtol=1e-10, atol=1e-12)
    assert kl > 0.01
    assert not found["kl"].requires_grad


# Masks.


def assert_only_kept_count(found):
    p, q = (found[name][KEPT.bool()] for name in ("pred", "pred2"))
    assert found["kl"].item() == pytest.approx(float(both(p, q).detach()) / 2)


@both_modes
@pytest.mark.parametrize("name", ["labels", "label", "targets", "target"])
def test_positions_without_a_label_do_not_count(mode, name):
    net, batch = make(shape=(3, 3))
    labels = torch.where(KEPT == 1, batch["labels"], -100)

    def step(batch):
        pred = net(batch["x"])
        return {"loss": F.cross_entropy(pred.flatten(0, 1), batch[name].flatten()), "pred": pred}

    assert_only_kept_count(RDrop(mode=mode)(step, {"x": batch["x"], name: labels}))


@both_modes
def test_a_mask_is_a_field_or_computed(mode):
    net, batch = make(shape=(3, 3))
    batch["attention_mask"] = KEPT
    seen = []

    def mask(batch, outputs):
        seen.append((batch["x"].shape, outputs["pred"].shape, "loss" in outputs))
        return batch["attention_mask"].bool()

    for choice in ("attention_mask", mask):
        assert_only_kept_count(RDrop(mode=mode, mask=choice)(step_of(net), batch))
    assert seen == [((3, 3, 5), (3, 3, CLASSES), True)]  # the rows of the batch, not twice as many


def test_a_mask_that_is_not_there_is_refused():
    net, batch = make(shape=(3, 3))
    with pytest.raises(ValueError, match=r"\('words'\).* shape \(3, 3\), but got NoneType; .*\['labels', 'x'\]"):
        RDrop(mask="words")(step_of(net), batch)
    with pytest.raises(ValueError, match="the batch holds no field by name"):
        RDrop(mask="words", mode="two_pass")(lambda x: {"loss": net(x).sum(), "pred": net(x)}, batch["x"])
    with pytest.raises(ValueError, match=r"`mask` to have shape \(3, 3\), but got \(3,\)"):
        RDrop(mask=lambda batch, outputs: torch.ones(3))(step_of(net), batch)


# What comes in and goes out.


Out = make_dataclass("Out", ["loss", "logits", ("hidden", tuple, None)])


@dataclass
class Tokens(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: tuple | None = None


@both_modes
@pytest.mark.parametrize("make_output", [Out, Tokens, dict], ids=["dataclass", "ModelOutput", "dict"])
def test_outputs_of_every_kind_become_a_dict(mode, make_output):
    net, batch = make()
    batch["text"] = list("abcdef")

    def step(batch):
        pred = net(batch["x"])
        return make_output(loss=F.cross_entropy(pred, batch["labels"]), logits=pred, hidden=(2 * pred,))

    found = RDrop(mode=mode)(step, batch)
    assert type(found) is dict
    assert set(found) == {"loss", "logits", "pred", "pred2", "kl", "hidden"}
    assert found["logits"].shape == found["pred"].shape == (ROWS, CLASSES)
    torch.testing.assert_close(found["logits"], found["pred"], rtol=0, atol=0)
    torch.testing.assert_close(found["hidden"][0], 2 * found["pred"], rtol=0, atol=0)


def test_a_loss_for_each_example_is_averaged():
    net, batch = make(dropout=0.0)

    def step(batch):
        pred = net(batch["x"])
        return {"loss": F.cross_entropy(pred, batch["labels"], reduction="none"), "pred": pred}

    for mode in ("concat", "two_pass"):
        found = RDrop(mode=mode)(step, batch)
        torch.testing.assert_close(found["loss"], F.cross_entropy(net(batch["x"]), batch["labels"]))


def test_logits_are_taken_where_pred_is_an_argmax():
    net, batch = make()

    def step(batch):
        logits = net(batch["x"])
        return {"loss": logits.sum(), "pred": logits.argmax(-1), "logits": logits}

    found = RDrop()(step, batch)
    torch.testing.assert_close(found["pred"], found["logits"], rtol=0, atol=0)


# Errors.


@both_modes
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda p: {"pred": p}, r"dict or dataclass with `loss` and `pred` .* got the entries \['pred'\]"),
        (lambda p: Out(None, p), r"got the entries .*'logits', 'loss'\]"),
        (lambda p: {"loss": 1.0, "pred": p}, "got `loss` of type float"),
        (lambda p: {"loss": p.sum()}, r"got the entries \['loss'\]\. Return the logits as `pred`"),
        (lambda p: {"loss": p.sum(), "pred": p.argmax(-1)}, r"floating-point .* but got torch\.int64.*argmax"),
        (lambda p: {"loss": p.sum(), "pred": [1, 2]}, r"entries \['loss', 'pred'\]"),
        (lambda p: (p.sum(), p), "but got tuple"),
        (lambda p: p, "but got Tensor"),
    ],
)
def test_outputs_without_loss_or_prediction_are_refused(mode, outputs, message):
    net, batch = make()
    with pytest.raises(ValueError, match=message):
        RDrop(mode=mode)(lambda b: outputs(net(b["x"])), batch)


@pytest.mark.parametrize(
    ("change", "shape"),
    [(lambda p: p.flatten(0, 1), r"\(48,\)"), (lambda p: p[:7], r"\(7, 4\)"), (lambda p: p.sum(), r"\(\)")],
)
def test_predictions_that_cannot_be_halved_are_refused(change, shape):
    net, batch = make()
    with pytest.raises(ValueError, match=rf"to have 12 rows, two for each of the 6 .* got shape {shape}.*'two_pass'"):
        RDrop()(lambda b: {"loss": net(b["x"]).sum(), "pred": change(net(b["x"]))}, batch)


def test_a_batch_that_cannot_be_doubled_is_refused_by_name():
    net, batch = make()
    batch["text"] = ["one", "two"]
    with pytest.raises(ValueError, match=r"list of length 2 for `batch\['text'\]`.*mode='two_pass'"):
        RDrop()(step_of(net), batch)
    assert RDrop(mode="two_pass")(step_of(net), batch)["kl"] > 0


def test_one_logit_is_no_distribution():
    net, batch = make(out=1)
    with pytest.raises(ValueError, match=r"at least 2 classes .*'bernoulli'.*'mse'"):
        RDrop()(lambda b: {"loss": net(b["x"]).sum(), "pred": net(b["x"])}, batch)


# Dropout.


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob


class Attention(nn.Module):
    def __init__(self, attention_dropout):
        super().__init__()
        self.attention_dropout = attention_dropout
        self.drop_last = True
        self.dropout_kind = "bernoulli"


@pytest.mark.parametrize(
    "build",
    [
        nn.Dropout,
        nn.AlphaDropout,
        DropPath,
        Attention,
        lambda p: nn.LSTM(2, 2, num_layers=2, dropout=p),
        lambda p: nn.MultiheadAttention(4, 2, dropout=p),
        lambda p: BertForSequenceClassification(bert_config(dropout=p)),
    ],
)
def test_has_dropout(build):
    for p, expected in [(0.1, True), (0.0, False)]:
        model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"inner": build(p)}))
        assert has_dropout(model) is expected


def test_a_recurrent_layer_alone_drops_nothing():
    with pytest.warns(UserWarning, match="non-zero dropout"):  # torch's own
        gru = nn.GRU(2, 2, num_layers=1, dropout=0.5)
    assert not has_dropout(gru)


class Packing(nn.Module):
    """Its batches come sorted by length, as `pack_padded_sequence` asks for."""

    def __init__(self, enforce_sorted=True):
        super().__init__()
        torch.manual_seed(0)
        self.enforce_sorted = enforce_sorted
        self.rnn, self.drop, self.head = nn.GRU(5, 8, batch_first=True), nn.Dropout(0.5), nn.Linear(8, CLASSES)

    def forward(self, batch):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.drop(batch["x"]), batch["lengths"], batch_first=True, enforce_sorted=self.enforce_sorted
        )
        pred = self.head(self.rnn(packed)[1][0])
        return {"loss": F.cross_entropy(pred, batch["labels"]), "pred": pred}


def test_sorted_lengths_that_doubling_breaks_name_two_pass():
    batch = {"x": torch.randn(4, 6, 5), "lengths": torch.tensor([6, 4, 4, 2]), "labels": torch.tensor([0, 1, 2, 3])}
    with pytest.raises(RuntimeError, match=r"sorted by length.*mode='two_pass'.*enforce_sorted=False") as caught:
        RDrop()(Packing(), batch)
    assert "enforce_sorted" in str(caught.value.__cause__)
    assert RDrop(mode="two_pass")(Packing(), batch)["kl"] > 0
    assert RDrop()(Packing(enforce_sorted=False), batch)["kl"] > 0
    wrong = {**batch, "lengths": torch.tensor([7, 4, 4, 2])}  # another error of the same function is its own
    with pytest.raises(RuntimeError) as other:
        RDrop()(Packing(enforce_sorted=False), wrong)
    assert other.value.__cause__ is None and "two_pass" not in str(other.value)
