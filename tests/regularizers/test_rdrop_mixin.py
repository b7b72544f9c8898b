"""The mixin in every shape that a user's class can have."""

import copy
import inspect
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastnlp_adv.regularizers import RDrop, RDropMixin


class Counted(nn.Module):
    """A model that keeps what its forwards were given."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(4, 3))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.net(x)

    def loss(self, x, labels):
        pred = self(x)
        return {"loss": F.cross_entropy(pred, labels), "pred": pred}


class Defines(RDropMixin, Counted):
    def train_step(self, x, labels):
        return self.loss(x, labels)


class Plain(Counted):
    def train_step(self, x, labels):
        return self.loss(x, labels)


class Inherits(RDropMixin, Plain):
    pass


class MixinLast(Plain, RDropMixin):
    pass


class OnlyForward(RDropMixin, Counted):
    def forward(self, x, labels):
        pred = super().forward(x)
        return {"loss": F.cross_entropy(pred, labels), "pred": pred}


class Overrides(Defines):
    def train_step(self, x, labels):
        return super().train_step(x, labels)


class Grandchild(Overrides):
    def train_step(self, x, labels):
        return super().train_step(x=x, labels=labels)


class OverridesForward(OnlyForward):
    def forward(self, x, labels, scale=1.0):
        return super().forward(scale * x, labels)


class StepOverForward(OnlyForward):
    def train_step(self, x, labels):
        return self(x, labels)


class StepFromElsewhere(OnlyForward, Plain):
    def forward(self, x):
        return Counted.forward(self, x)


ALL = [Defines, Inherits, MixinLast, OnlyForward, Grandchild, OverridesForward, StepOverForward, StepFromElsewhere]


def data():
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(5, 4, generator=generator), "labels": torch.randint(0, 3, (5,), generator=generator)}


def two_forwards(model, batch, kl_weight, divisor, mode="two_pass"):
    """R-Drop as tutorials write it: two predictions, two cross entropies, two KL divergences."""
    if mode == "two_pass":
        pred, pred2 = model.net(batch["x"]), model.net(batch["x"])
    else:
        pred, pred2 = model.net(torch.cat([batch["x"], batch["x"]])).chunk(2)
    ce_loss = 0.5 * (F.cross_entropy(pred, batch["labels"]) + F.cross_entropy(pred2, batch["labels"]))
    p_loss = F.kl_div(F.log_softmax(pred, dim=-1), F.softmax(pred2, dim=-1), reduction="none").sum()
    q_loss = F.kl_div(F.log_softmax(pred2, dim=-1), F.softmax(pred, dim=-1), reduction="none").sum()
    return pred, pred2, ce_loss + kl_weight * (p_loss + q_loss) / 2 / divisor


def assert_step_is(model, batch, kl_weight, divisor):
    torch.manual_seed(1)
    found = model.train_step(**batch)["loss"]
    torch.manual_seed(1)
    torch.testing.assert_close(found, two_forwards(model, batch, kl_weight, divisor)[2])


@pytest.mark.parametrize("mode", ["two_pass", "concat"])
@pytest.mark.parametrize("model_class", ALL)
def test_every_kind_of_class_runs_its_forward_twice_or_on_twice_the_rows(model_class, mode):
    torch.manual_seed(0)
    model, batch = model_class(), data()
    model.rdrop_mode = mode
    torch.manual_seed(1)
    found = model.train_step(**batch)
    given = [batch["x"]] * 2 if mode == "two_pass" else [torch.cat([batch["x"]] * 2)]
    torch.testing.assert_close(model.seen, given, rtol=0, atol=0)
    torch.manual_seed(1)
    pred, pred2, loss = two_forwards(model, batch, kl_weight=1.0, divisor=5, mode=mode)
    torch.testing.assert_close([found["pred"], found["pred2"]], [pred, pred2], rtol=0, atol=0)
    torch.testing.assert_close(found["loss"], loss)
    for step in (model.train_step, type(model).train_step):
        assert [name for name in inspect.signature(step).parameters if name != "self"][:2] == ["x", "labels"]


def test_forwards_own_signature_becomes_that_of_train_step():
    assert str(inspect.signature(OnlyForward().train_step)) == "(x, labels)"
    assert str(inspect.signature(OverridesForward().train_step)) == "(x, labels, scale=1.0)"
    assert OnlyForward.train_step.__qualname__ == "OnlyForward.train_step"


def test_forward_and_evaluate_step_are_not_touched():
    class Model(Defines):
        def evaluate_step(self, x):
            return {"pred": self(x)}

    assert "forward" not in vars(Model)
    model = Model().eval()
    assert set(model.evaluate_step(data()["x"])) == {"pred"}
    assert len(model.seen) == 1


def test_a_class_without_forward_gets_no_train_step():
    class MyMixin(RDropMixin):
        pass

    class Abstract(RDropMixin, nn.Module):
        pass

    assert not hasattr(MyMixin, "train_step")
    assert not hasattr(Abstract, "train_step")

    class Concrete(MyMixin, Plain):
        pass

    assert "pred2" in Concrete().train_step(**data())


# Ways to be called.


class ManyParameters(RDropMixin, Counted):
    def train_step(self, x, labels, scale=2.0, *, offset, power=1, **rest):
        self.seen.append((scale, offset, power, {name: len(value) for name, value in rest.items()}))
        return self.loss(scale * x + offset, labels)


@pytest.mark.parametrize("mode", ["two_pass", "concat"])
def test_defaults_keywords_and_others(mode):
    model, batch = ManyParameters(), data()
    model.rdrop_mode = mode
    assert str(inspect.signature(model.train_step)) == "(x, labels, scale=2.0, *, offset, power=1, **rest)"
    forwards, rows = (2, 5) if mode == "two_pass" else (1, 10)
    calls = {
        (2.0, 1.0, 1): lambda: model.train_step(batch["x"], batch["labels"], offset=1.0, text=["a"] * 5),
        (3.0, 1.0, 2): lambda: model.train_step(
            batch["x"], labels=batch["labels"], scale=3.0, offset=1.0, power=2, text=["a"] * 5
        ),
        (4.0, 0.5, 1): lambda: model.train_step(batch["x"], batch["labels"], 4.0, offset=0.5, text=["a"] * 5),
    }
    for expected, call in calls.items():
        model.seen.clear()
        call()
        assert model.seen[::2] == [(*expected, {"text": rows})] * forwards


# Settings.


class Tuned(Defines):
    rdrop_kl_weight = 0.1
    rdrop_reduction = "sum"


def test_settings_are_class_attributes_read_at_each_step():
    model, batch = Tuned(), data()
    assert_step_is(model, batch, 0.1, 1)
    model.rdrop_kl_weight, model.rdrop_reduction = 3.0, "batchmean"
    assert_step_is(model, batch, 3.0, 5)
    assert Tuned.rdrop_kl_weight == 0.1


def test_misspelt_settings_are_refused_with_the_class_and_attributes_of_ones_own_are_not():
    with pytest.raises(ValueError, match=r"settings of Model to be among .*'rdrop_kl_weight'.* got `rdrop_weight`"):
        type("Model", (RDropMixin, Plain), {"rdrop_weight": 1.0, "rdrop_report": lambda self: None})
    with pytest.raises(ValueError, match=r"but got `rdrop_kl`"):
        type("Model", (RDropMixin, Plain), {"rdrop_kl": 1.0})
    model = type("Model", (RDropMixin, Plain), {"rdrop_layers": (1, 2), "rdrop_rate": 0.5})
    assert model.rdrop_layers == (1, 2)


class MaskMethod(Defines):
    kept = 2

    def rdrop_mask(self, batch, outputs):
        return torch.arange(len(batch["labels"])) < self.kept


class StaticDivergence(Defines):
    @staticmethod
    def rdrop_divergence(p, q):
        return (p - q).abs()


def test_callable_settings():
    model, batch = MaskMethod(), data()
    found = model.train_step(**batch)
    same = {"loss": found["loss"], "pred": found["pred"]}
    assert RDrop(mode="two_pass")(lambda _: same, batch)["kl"] == 0  # nothing to compare with itself
    p, q = (found[name][:2].log_softmax(-1) for name in ("pred", "pred2"))
    torch.testing.assert_close(found["kl"], (((p.exp() - q.exp()) * (p - q)).sum() / 2 / 2).detach())
    found = StaticDivergence().train_step(**batch)
    torch.testing.assert_close(found["kl"], ((found["pred"] - found["pred2"]).abs().sum() / 5).detach())


def test_rdrop_as_replaces_the_settings_and_gives_them_back():
    model, batch = Tuned(), data()
    with model.rdrop_as(None):
        assert set(model.train_step(**batch)) == {"loss", "pred"}
        with model.rdrop_as(RDrop(kl_weight=2.0, mode="two_pass")):
            assert_step_is(model, batch, 2.0, 5)
        assert set(model.train_step(**batch)) == {"loss", "pred"}
    with pytest.raises(RuntimeError, match="stop"), model.rdrop_as(None):
        raise RuntimeError("stop")
    assert_step_is(model, batch, 0.1, 1)


@pytest.mark.parametrize("model_class", [Grandchild, OnlyForward])
@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_step_leaves_nothing_behind(model_class, at):
    model, batch = model_class(), data()

    def interrupt(module, args):
        if len(model.seen) == at:
            raise KeyboardInterrupt

    handle = model.net.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train_step(**batch)
    handle.remove()
    model.seen.clear()
    assert "pred2" in model.train_step(**batch)
    assert len(model.seen) == 2


# Copies and warnings.


def through_torch(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("through", [copy.deepcopy, copy.copy, through_torch])
@pytest.mark.parametrize("model_class", [Tuned, OnlyForward])
@pytest.mark.parametrize("trained", [False, True])
def test_a_copied_model_trains_the_same(through, model_class, trained):
    model, batch = model_class(), data()
    if trained:
        model.train_step(**batch)
    model.rdrop_reduction = "mean"
    twin = through(model)
    assert sorted(twin.state_dict()) == ["net.1.bias", "net.1.weight"]
    losses = []
    for each in (model, twin):
        torch.manual_seed(1)
        losses.append(each.train_step(**batch)["loss"])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_a_model_without_dropout_is_warned_about_once():
    model = Tuned(dropout=0.0)
    model.rdrop_kl_weight = 0.5  # a setting is no dropout, though its name has a "drop" in it
    with pytest.warns(UserWarning, match="no dropout above 0 in Tuned: .* divergence is 0"):
        model.train_step(**data())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train_step(**data())
        Tuned(dropout=0.1).train_step(**data())
        with Tuned(dropout=0.0).rdrop_as(None):
            pass
