"""Models and loops of many kinds, each against the definition written out here: the examples second, towers, masks."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch
import transformers
from references import assert_same, gradients, on_weights
from support import bert_config
from torch import distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from fastnlp_adv import (
    ATTA,
    AWP,
    FGM,
    FGSM,
    PGD,
    R3F,
    SAM,
    SMART,
    TAVAT,
    VAT,
    FreeLB,
    GradientPenalty,
    NEFTune,
    RDrop,
    robust_evaluate,
)
from fastnlp_adv.callbacks import METHODS

VOCAB = 60


def xlnet():
    """It looks up ids of shape (positions, examples), from a batch of shape (examples, positions)."""
    config = transformers.XLNetConfig(
        vocab_size=VOCAB, d_model=16, n_layer=1, n_head=2, d_inner=32, dropout=0.0, summary_last_dropout=0.0
    )
    torch.manual_seed(0)
    return transformers.XLNetForSequenceClassification(config).double()


class TimeMajor(nn.Module):
    """It takes ids of shape (positions, examples), as torch's recurrent layers do by default."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.rnn, self.head = nn.Embedding(VOCAB, 8), nn.LSTM(8, 8), nn.Linear(8, 2)
        self.double()

    def forward(self, words, labels):
        pred = self.head(self.rnn(self.embedding(words))[0].mean(0))
        return {"loss": cross_entropy(pred, labels), "logits": pred}


class Silent(TimeMajor):
    """Its forward has no labels; those are in the batch."""

    def forward(self, words):
        return self.head(self.rnn(self.embedding(words))[0].mean(0))


def batch_of(kind, examples=4, positions=7):
    g = torch.Generator().manual_seed(examples)
    ids, labels = torch.randint(5, VOCAB, (examples, positions), generator=g), torch.arange(examples) % 2
    return {"input_ids": ids, "labels": labels} if kind is xlnet else {"words": ids.T.contiguous(), "labels": labels}


def loss_of(model, batch):
    if isinstance(model, Silent):
        return cross_entropy(model(batch["words"]), batch["labels"])
    return model(**batch)["loss"]


def example(kind, batch, i):
    """A batch of one example."""
    by_example = {name: field.T if name == "words" else field for name, field in batch.items()}
    one = {name: field[i : i + 1] for name, field in by_example.items()}
    return {name: field.T if name == "words" else field for name, field in one.items()}


def table_of(model):
    return next(module for module in model.modules() if isinstance(module, nn.Embedding))


class Added:
    """What an attack adds to each lookup of a table; its hooks have to be on before."""

    def __init__(self, table):
        self.table, self.values = table, []
        table.register_forward_hook(self.note)

    def note(self, table, args, output):
        self.values.append((output - table.weight[args[0]]).detach())

    @property
    def by_example(self):
        """In the last lookup, of shape (examples, positions, features), for ids with the examples second."""
        return self.values[-1].transpose(0, 1)


SECOND = pytest.mark.parametrize("kind", [xlnet, TimeMajor, Silent])


@SECOND
def test_a_perturbation_per_example_where_the_examples_are_second(kind):
    model = kind()
    fgm = FGM(model, epsilon=0.7, granularity="sequence")
    added = Added(table_of(model))
    for shape in ((4, 7), (5, 5), (7, 4)):
        batch = batch_of(kind, *shape)
        model.zero_grad()
        fgm.step(lambda b: loss_of(model, b), batch)
        clean = model_gradient(kind, batch)
        torch.testing.assert_close(added.by_example, 0.7 * clean / clean.norm(dim=(1, 2), keepdim=True))


def model_gradient(kind, batch):
    """The gradient of the loss at the lookups, example by example."""
    model, rows = kind(), []
    for i in range(len(batch["labels"])):
        outputs = []
        handle = table_of(model).register_forward_hook(lambda m, a, out, outputs=outputs: outputs.append(out))
        loss = loss_of(model, example(kind, batch, i))
        handle.remove()
        rows.append(torch.autograd.grad(loss, outputs)[0].transpose(0, 1))
    return torch.cat(rows)


@SECOND
def test_the_gradient_penalty_where_the_examples_are_second(kind):
    batch, model = batch_of(kind), kind()
    with GradientPenalty(model, weight=1.0) as penalty:
        found = penalty(lambda b: {"loss": loss_of(model, b)}, batch)["gradient_penalty"]
    expected = model_gradient(kind, batch).square().sum() / 2 / 4
    torch.testing.assert_close(found.detach(), expected)


@SECOND
@pytest.mark.parametrize("method", [NEFTune, FreeLB], ids=["neftune", "freelb"])
def test_noise_is_of_the_size_of_an_example_where_the_examples_are_second(kind, method):
    batch, model = batch_of(kind, 3, 40), kind()
    attack = NEFTune(model, alpha=5.0) if method is NEFTune else FreeLB(model, init=5.0, steps=1)
    added = Added(table_of(model))
    attack.step(lambda b: loss_of(model, b), batch)
    bound = 5.0 / math.sqrt(40 * added.by_example.shape[-1])
    assert 0.95 * bound < added.by_example.abs().max() <= bound
    assert added.by_example.norm(dim=(1, 2)).sub(5 / math.sqrt(3)).abs().max() < 0.4


@pytest.mark.parametrize(("kind", "shape"), [(xlnet, (4, 7)), (xlnet, (5, 5)), (TimeMajor, (4, 7))])
def test_vat_perturbs_each_example_by_epsilon_where_the_examples_are_second(kind, shape):
    model = kind()
    vat = VAT(model, epsilon=0.7, xi=0.1, steps=2)
    added = Added(table_of(model))
    vat(lambda b: model(**b), batch_of(kind, *shape))
    torch.testing.assert_close(added.by_example.norm(dim=(1, 2)), torch.full(shape[:1], 0.7, dtype=torch.float64))


def test_a_part_of_the_examples_where_they_are_second():
    batch, model = batch_of(xlnet, 6, 5), xlnet()
    fgm = FGM(model, 0.7, granularity="sequence", fraction=0.5, replace=True)
    added = Added(table_of(model))
    fgm.step(lambda b: loss_of(model, b), batch)
    assert sorted(added.by_example.norm(dim=(1, 2)).round(decimals=9).tolist()) == [0.0] * 3 + [0.7] * 3


@pytest.mark.parametrize("shape", [(4, 7), (5, 5), (5, 10), (8, 4)], ids=str)
def test_both_copies_of_r_drop_have_one_perturbation_where_the_examples_are_second(shape):
    """In the doubled batch there may be as many examples as positions."""
    batch, model = batch_of(xlnet, *shape), xlnet()
    fgm, rdrop = FGM(model, 0.7, granularity="sequence"), RDrop(kl_weight=0.0, mode="concat")
    added = Added(table_of(model))
    fgm.step(lambda b: rdrop(lambda each: model(**each), b)["loss"], batch)
    first, second = added.by_example.split(shape[0])
    torch.testing.assert_close(first, second)
    clean = model_gradient(xlnet, batch)
    torch.testing.assert_close(first, 0.7 * clean / clean.norm(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("kind", [xlnet, TimeMajor])
def test_atta_keeps_a_perturbation_per_example_where_the_examples_are_second(kind):
    model = kind()
    atta = ATTA(model, epsilon=1.0, alpha=0.5, storage_dtype=torch.float64)
    added = Added(table_of(model))
    whole = batch_of(kind, 6, 7)
    for _ in range(2):
        for rows in ([0, 1, 2, 3], [4, 5]):
            parts = [example(kind, whole, i) for i in rows]
            joined = {
                name: torch.cat([p[name] for p in parts], dim=int(name == "words" and kind is TimeMajor))
                for name in parts[0]
            }
            atta.step(lambda joined=joined: loss_of(model, joined), indices=rows)
    clean = model_gradient(kind, whole)
    found = torch.cat([value.transpose(0, 1) for value in added.values[2:]])
    torch.testing.assert_close(found, 0.5 * clean / clean.norm(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize("kind", [xlnet, TimeMajor])
def test_the_worst_case_is_that_of_each_example_alone_where_the_examples_are_second(kind):
    """With so many steps that the random starts hardly matter."""
    model, batch = kind().eval(), batch_of(kind, 4, 7)

    def worst(batches):
        options = {"epsilons": (6.0,), "relative": kind is xlnet, "steps": 60, "restarts": 2}
        found = robust_evaluate(model, batches, step=lambda b: model(**b), **options)
        return found[0.0]["loss"], found[6.0]["loss"]

    together, alone = worst([batch]), worst([example(kind, batch, i) for i in range(4)])
    assert together[0] == pytest.approx(alone[0], rel=1e-9)
    assert together[1] - together[0] == pytest.approx(alone[1] - alone[0], rel=0.05)
    assert together[1] > 1.01 * together[0]


class Towers(nn.Module):
    """Compares texts that encoders of their own, or a shared one, have encoded."""

    def __init__(self, towers, *, shared=False):
        super().__init__()
        torch.manual_seed(0)
        encoders = [
            transformers.BertModel(bert_config(0.0, num_hidden_layers=1)) for _ in range(1 if shared else towers)
        ]
        self.towers, self.number = nn.ModuleList(encoders), towers
        self.double()

    def forward(self, texts, labels):
        encoders = list(self.towers) * (self.number if len(self.towers) == 1 else 1)
        vectors = [normalize(e(input_ids=text).pooler_output, dim=-1) for e, text in zip(encoders, texts, strict=True)]
        pred = 20 * sum(vectors[0] @ other.T for other in vectors[1:])
        return {"loss": cross_entropy(pred, labels), "pred": pred}


def texts_of(towers):
    g = torch.Generator().manual_seed(0)
    return [torch.randint(5, 50, (8, 5 + number), generator=g) for number in range(towers)], torch.arange(8)


@pytest.mark.parametrize(("towers", "shared"), [(2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize("emb_name", [None, "word_embeddings"])
def test_the_tables_of_all_towers_are_perturbed(towers, shared, emb_name):
    model, (texts, labels) = Towers(towers, shared=shared), texts_of(towers)

    def loss(model):
        return model(texts, labels)["loss"]

    fgm = FGM(model, 0.7, emb_name=emb_name)
    names = [name for name, _ in model.named_parameters() if "word_embeddings" in name]
    assert [tap.name for tap in fgm.taps] == names and len(names) == (1 if shared else towers)
    assert all(f"`{name}`" in fgm.describe() for name in names)
    fgm.step(lambda: loss(model))
    assert_same(gradients(model), on_weights(model, loss, names, steps=[0.7]))


def test_a_frozen_teacher_is_left_alone():
    """The teacher's input is not perturbed, so its targets are those of the clean text."""
    model, (texts, labels) = Towers(2), texts_of(2)
    teacher = model.towers[1]
    teacher.requires_grad_(False)
    added = Added(teacher.get_input_embeddings())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fgm = FGM(model, 0.7)
    assert [tap.name for tap in fgm.taps] == ["towers.0.embeddings.word_embeddings.weight"]
    fgm.step(lambda: model(texts, labels)["loss"])
    assert len(added.values) == 2 and all(value.abs().max() == 0 for value in added.values)


def test_the_routes_of_sentence_transformers_are_towers():
    pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

    class Encoder(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.auto_model = model

        def forward(self, features):
            return {**features, "sentence_embedding": self.auto_model(input_ids=features["input_ids"]).pooler_output}

    towers = Towers(2).towers
    router = modules.Router({"query": [Encoder(towers[0])], "document": [Encoder(towers[1])]})
    texts, labels = texts_of(2)

    def loss(model):
        parts = zip(("query", "document"), texts, strict=True)
        query, document = (model({"input_ids": t}, task=task)["sentence_embedding"] for task, t in parts)
        return cross_entropy(20 * normalize(query, dim=-1) @ normalize(document, dim=-1).T, labels)

    names = [name for name, _ in router.named_parameters() if "word_embeddings" in name]
    fgm = FGM(router, 0.7)
    assert [tap.name for tap in fgm.taps] == names and len(names) == 2
    fgm.step(lambda: loss(router))
    assert_same(gradients(router), on_weights(router, loss, names, steps=[0.7]))


@pytest.mark.parametrize("towers", [2, 3])
def test_the_worst_case_of_towers_is_the_same_by_name(towers):
    model, (texts, labels) = Towers(towers), texts_of(towers)
    batch = {"texts": texts, "labels": labels}
    options = {"epsilons": (0.5,), "steps": 5, "restarts": 1}
    found = [robust_evaluate(model, [batch], emb_name=name, **options) for name in (None, "word_embeddings")]
    first = robust_evaluate(model, [batch], emb_name="towers.0.embeddings.word_embeddings", **options)
    assert found[0][0.5]["loss"] == found[1][0.5]["loss"] > first[0.5]["loss"]


class Normed(nn.Embedding):
    """Its forward does more than a lookup."""

    def __init__(self, *size):
        super().__init__(*size)
        self.norm = nn.LayerNorm(size[1])

    def forward(self, ids):
        return self.norm(super().forward(ids))


class Mean(nn.Module):
    def __init__(self, table):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.head = table, nn.Linear(16, 2)
        self.double()

    def forward(self, ids):
        return self.head(torch.tanh(self.embed_tokens(ids)).mean(1))


IDS, LABELS = torch.randint(5, VOCAB, (4, 9), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1])


def mean_loss(model):
    return cross_entropy(model(IDS), LABELS)


def test_noise_on_the_output_of_a_table_with_a_forward_of_its_own():
    model = Mean(Normed(VOCAB, 16))
    clean, seen = model.embed_tokens(IDS).detach(), []
    neftune = NEFTune(model, alpha=5.0)
    model.embed_tokens.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    neftune.step(lambda: mean_loss(model))
    bound = 5.0 / math.sqrt(9 * 16)
    assert 0.9 * bound < (seen[0] - clean).abs().max() <= bound


@pytest.mark.parametrize("attack", [FGM, PGD])
def test_the_weight_of_a_table_with_a_forward_of_its_own(attack):
    model = Mean(Normed(VOCAB, 16))
    with pytest.raises(ValueError, match=r"look up as nn.Embedding does, but got Normed, which has a custom forward"):
        attack(model, granularity="sequence")
    fgm = FGM(model, 0.7, emb_name="*tokens.weight")
    fgm.step(lambda: mean_loss(model))
    assert_same(gradients(model), on_weights(model, mean_loss, ["embed_tokens.weight"], steps=[0.7]))


def test_a_frozen_table_with_a_forward_of_its_own_is_refused_by_name():
    model = Mean(Normed(VOCAB, 16))
    model.embed_tokens.requires_grad_(False)
    for name in (None, "embed_tokens.weight"):
        with pytest.raises(
            ValueError, match=r"`embed_tokens.weight` to be trainable, since Normed has a custom forward"
        ):
            FGM(model, emb_name=name)
    NEFTune(model).close()


@pytest.mark.parametrize("granularity", ["vocab", "sequence", "token"])
@pytest.mark.parametrize("norm", ["weight_norm", "orthogonal", "of old"])
def test_a_table_whose_weight_is_computed(norm, granularity):
    """Its rows are perturbed as if they were weights."""
    put = {
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "orthogonal": nn.utils.parametrizations.orthogonal,
        "of old": nn.utils.weight_norm,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Mean(put[norm](nn.Embedding(VOCAB, 16)))
    fgm = FGM(model, 0.7, granularity=granularity)
    assert [tap.name for tap in fgm.taps] == ["embed_tokens.weight"]
    outputs = []
    model.embed_tokens.register_forward_hook(lambda m, a, out: outputs.append(out))
    fgm.step(lambda: mean_loss(model))
    clean, moved = outputs[-2].detach().requires_grad_(), outputs[-1].detach()
    loss = cross_entropy(model.head(torch.tanh(clean).mean(1)), LABELS)
    (grad,) = torch.autograd.grad(loss, clean)
    if granularity == "vocab":
        total = torch.zeros(VOCAB, 16, dtype=grad.dtype).index_add_(0, IDS.flatten(), grad.flatten(0, 1))
        expected = (0.7 * total / total.norm())[IDS]
    else:
        expected = 0.7 * grad / grad.norm(dim=(1, 2) if granularity == "sequence" else 2, keepdim=True)
    torch.testing.assert_close(moved - clean.detach(), expected)


@pytest.mark.parametrize("attack", [FGM, PGD, FreeLB, NEFTune])
@pytest.mark.parametrize("reentrant", [False, True], ids=["cached", "checkpointed"])
def test_a_forward_inside_the_backward_pass_is_named(attack, reentrant):
    model = Mean(nn.Embedding(VOCAB, 16))

    def cached():
        """Embed without gradients, and again in the backward pass, as GradCache does."""
        with torch.no_grad():
            vectors = model(IDS)
        vectors.requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(vectors, LABELS), vectors)
        out = vectors.detach().sum().requires_grad_()

        def again(_):
            with torch.enable_grad():
                torch.autograd.backward(model(IDS), grad)

        out.register_hook(again)
        return out

    def checkpointed():
        start = torch.zeros((), dtype=torch.float64, requires_grad=True)
        pred = checkpoint(lambda start: model(IDS) + start, start, use_reentrant=True)
        return cross_entropy(pred, LABELS)

    with pytest.raises(RuntimeError, match=r"`embed_tokens.weight` was only looked up inside it, as gradient caching"):
        attack(model).step(checkpointed if reentrant else cached)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("method", [FGM, PGD, FreeLB, NEFTune, ATTA, SAM, AWP, VAT, SMART, GradientPenalty])
@pytest.mark.parametrize("inside", [False, True])
def test_static_graph_is_refused(method, inside, one_process):
    model = nn.parallel.DistributedDataParallel(Mean(nn.Embedding(VOCAB, 16)), static_graph=True)
    model = nn.Sequential(model) if inside else model
    with pytest.raises(ValueError, match="without `static_graph`, since a step has several passes"):
        method(model)


def test_ddp_without_static_graph_is_taken(one_process):
    model = nn.parallel.DistributedDataParallel(Mean(nn.Embedding(VOCAB, 16)))
    FGM(model, 0.7).step(lambda: mean_loss(model))
    expected = on_weights(model.module, mean_loss, ["embed_tokens.weight"], steps=[0.7])
    assert_same(gradients(model.module), expected)


class Convolution(nn.Module):
    """BatchNorm between embedding and head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm, self.head = nn.Embedding(VOCAB, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.double()

    def forward(self, ids):
        return self.upper(self.embedding(ids))

    def upper(self, embedded):
        return self.head(torch.tanh(self.norm(embedded.mean(1))))


#: a method, and how many of its passes train on the input that it has then
COUNTED = {
    "FGM": (FGM, 2),
    "FGM, replace": (lambda model: FGM(model, replace=True), 1),
    "PGD": (lambda model: PGD(model, steps=3), 2),
    "PGD, replace": (lambda model: PGD(model, steps=3, replace=True), 1),
    "FreeLB": (lambda model: FreeLB(model, steps=3), 3),
    "TAVAT": (lambda model: TAVAT(model, steps=2), 2),
    "NEFTune": (NEFTune, 1),
    "SAM": (SAM, 1),
    "AWP": (AWP, 2),
    "AWP, replace": (lambda model: AWP(model, replace=True), 1),
}


@pytest.mark.parametrize("name", COUNTED)
def test_batch_norm_counts_passes_that_train(name):
    method, expected = COUNTED[name]
    model = Convolution()
    method(model).step(lambda: mean_loss(model))
    assert model.norm.num_batches_tracked == expected
    assert model.norm.track_running_stats


@pytest.mark.parametrize("method", [lambda m: VAT(m, steps=2), SMART, R3F], ids=["VAT", "SMART", "R3F"])
def test_batch_norm_counts_two_forwards_of_a_regularizer(method):
    """That of the objective and that of the term; not those that look for the direction."""
    model = Convolution()

    def step(batch):
        pred = model(batch)
        return {"loss": cross_entropy(pred, LABELS), "pred": pred}

    method(model)(step, IDS)
    assert model.norm.num_batches_tracked == 2


@pytest.mark.parametrize("replace", [False, True])
def test_the_statistics_of_batch_norm_are_those_of_the_passes_that_train(replace):
    model, other = Convolution(), Convolution()
    FGM(model, 0.7, granularity="sequence", replace=replace).step(lambda: mean_loss(model))
    embedded = other.embedding(IDS).detach().requires_grad_()
    loss = cross_entropy(other.upper(embedded), LABELS)
    (grad,) = torch.autograd.grad(loss, embedded)
    if replace:
        other.norm.reset_running_stats()
    with torch.no_grad():
        other.upper(embedded + 0.7 * grad / grad.norm(dim=(1, 2), keepdim=True))
    torch.testing.assert_close(model.norm.running_mean, other.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, other.norm.running_var)


class Kept(nn.Module):
    """Each position changes the prediction, whatever the field `kept` holds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout, self.head = nn.Embedding(VOCAB, 16), nn.Dropout(0.0), nn.Linear(16, 2)
        self.double()

    def forward(self, ids, kept, labels):
        embedded = self.embedding(ids)
        pred = self.head(torch.tanh(embedded + embedded.mean(1, keepdim=True)).mean(1))
        return {"loss": cross_entropy(pred, labels), "pred": pred}


#: an attack with a mask, and the norm of what it adds to an example, where that is known
MASKED = {
    "FGM, vocab": (lambda model, mask: FGM(model, 0.7, mask=mask), None),
    "FGM, sequence": (lambda model, mask: FGM(model, 0.7, granularity="sequence", mask=mask), 0.7),
    "FGM, token": (lambda model, mask: FGM(model, 0.7, granularity="token", mask=mask), 0.7 * 2),
    "FGM, part": (lambda model, mask: FGM(model, 0.7, granularity="sequence", fraction=0.5, mask=mask), 0.7),
    "FGM, vocab, part": (lambda model, mask: FGM(model, 0.7, fraction=0.5, replace=True, mask=mask), None),
    "FGSM": (lambda model, mask: FGSM(model, 0.1, granularity="sequence", mask=mask), 0.1 * (4 * 16) ** 0.5),
    "PGD": (lambda model, mask: PGD(model, 0.7, alpha=0.7, steps=2, granularity="sequence", mask=mask), 0.7),
    "PGD, random": (lambda model, mask: PGD(model, steps=2, random_init=True, mask=mask), None),
    "PGD, part": (lambda model, mask: PGD(model, 0.7, granularity="sequence", fraction=0.5, mask=mask), None),
    "FreeLB": (lambda model, mask: FreeLB(model, init=5.0, mask=mask), None),
    "NEFTune": (lambda model, mask: NEFTune(model, alpha=5.0, mask=mask), None),
    "TAVAT": (lambda model, mask: TAVAT(model, init=5.0, mask=mask), None),
    "ATTA": (lambda model, mask: ATTA(model, epsilon=1.0, alpha=0.5, mask=mask, storage_dtype=torch.float64), 0.5),
}
#: tokens that are kept, and tokens that are not
BATCH = {
    "ids": torch.randperm(54).add(5)[:36].view(4, 9),
    "kept": torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1]).expand(4, 9),
    "labels": LABELS,
}


@pytest.mark.parametrize("rdrop", [False, True], ids=["alone", "with R-Drop"])
@pytest.mark.parametrize("kind", [str, bool, callable], ids=["named", "of bool", "computed"])
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_tells_which_positions_are_perturbed(name, kind, rdrop):
    make, norm = MASKED[name]
    model, batch = Kept(), {**BATCH, "kept": BATCH["kept"].bool() if kind is bool else BATCH["kept"]}
    attack = make(model, (lambda fields: fields["kept"] > 0) if kind is callable else "kept")
    both = RDrop(kl_weight=0.0, mode="concat")
    values = []
    model.embedding.register_forward_hook(lambda m, a, out: values.append((out - m.weight[a[0]]).detach()))

    def closure(fields):
        return (both(lambda each: model(**each), fields) if rdrop else model(**fields))["loss"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(2):  # in the first epoch ATTA perturbs nothing
            if isinstance(attack, ATTA):
                attack.step(lambda: closure(batch), indices=range(4))
            else:
                attack.step(closure, batch)
    (added,) = {tuple(value.shape): value for value in values if value.abs().max() > 0}.values()
    perturbed = added[added.flatten(1).norm(dim=1) > 0]
    assert len(perturbed) == len(added) or "part" in name
    left_out = BATCH["kept"][0] == 0
    assert perturbed[:, left_out].abs().max() == 0
    assert perturbed[:, ~left_out].norm(dim=2).min() > 1e-3
    if norm is not None:
        torch.testing.assert_close(perturbed.flatten(1).norm(dim=1), torch.full((len(perturbed),), norm).double())
    if rdrop:
        assert torch.equal(*added.chunk(2))


def test_the_norm_of_a_masked_step_is_of_what_is_kept():
    """Against the weights: tokens that are left out do not move, and do not count."""
    model = Kept()
    outputs = []
    handle = model.embedding.register_forward_hook(lambda m, a, out: outputs.append(out))
    (grad,) = torch.autograd.grad(model(**BATCH)["loss"], outputs)
    handle.remove()
    grad = grad * BATCH["kept"].unsqueeze(-1)
    total = torch.zeros(VOCAB, 16).double().index_add_(0, BATCH["ids"].flatten(), grad.flatten(0, 1))
    fgm = FGM(model, 0.7, mask="kept")
    added = Added(model.embedding)
    fgm.step(lambda b: model(**b)["loss"], BATCH)
    torch.testing.assert_close(added.values[-1], (0.7 * total / total.norm())[BATCH["ids"]])


@pytest.mark.parametrize("mask", ["nothing", lambda batch: batch["kept"][:, :3]], ids=["no field", "of another shape"])
def test_a_mask_that_does_not_fit_is_refused(mask):
    model = Kept()
    with pytest.raises(RuntimeError, match=r"Expected `mask` to give a tensor of shape \(4, 9\)"):
        FGM(model, mask=mask).step(lambda b: model(**b)["loss"], BATCH)


@pytest.mark.parametrize(
    ("closure", "found"),
    [
        (lambda model: lambda: model(IDS), r"to return the loss, .* but got a tensor of shape \(4, 2\)"),
        (lambda model: lambda: {"loss": mean_loss(model)}, r"to return the loss, .* but got dict"),
        (lambda model: lambda: mean_loss(model).item(), r"to return the loss, .* but got float"),
        (lambda model: lambda: None, r"to return the loss, .* but got NoneType"),
        (lambda model: lambda: mean_loss(model).detach(), r"to return the loss, .* but got one without a graph"),
        (lambda model: mean_loss(model), r"`closure` to be a function that returns the loss, but got Tensor"),
        (lambda model: None, r"`closure` to be a function that returns the loss, but got NoneType"),
    ],
    ids=["logits", "dict", "float", "nothing", "detached", "tensor", "None"],
)
@pytest.mark.parametrize("method", [FGM, PGD, FreeLB, TAVAT, NEFTune, ATTA, SAM, AWP])
def test_closures_that_return_no_loss_say_so(method, closure, found):
    model = Mean(nn.Embedding(VOCAB, 16))
    attack = method(model)
    with pytest.raises(TypeError, match=found):
        attack.step(closure(model), *([range(4)] if method is ATTA else []))
    attack.close()
    assert all(p.grad is None for p in model.parameters())


def with_backward(model):
    def closure():
        """As the closures of other implementations of SAM do."""
        loss = mean_loss(model)
        loss.backward()
        return loss

    return closure


def with_part_outside(model):
    embedded = torch.tanh(model.embed_tokens(IDS)).mean(1)
    return lambda: cross_entropy(model.head(torch.tanh(embedded)), LABELS) + 0 * mean_loss(model)


@pytest.mark.parametrize("closure", [with_backward, with_part_outside])
@pytest.mark.parametrize("method", [FGM, PGD, SAM, AWP])
def test_closures_whose_graph_is_freed_are_named(method, closure):
    model = Mean(nn.Embedding(VOCAB, 16))
    attack = method(model)
    with pytest.raises(RuntimeError, match=r"its graph was freed .* Remove `loss.backward\(\)` from the closure"):
        attack.step(closure(model))


@pytest.mark.parametrize("attack", [FGM, PGD])
@pytest.mark.parametrize("closure", [mean_loss, lambda model: lambda: 1.0], ids=["tensor", "float"])
def test_closures_of_a_with_block_that_return_no_loss_say_so(attack, closure):
    model = Mean(nn.Embedding(VOCAB, 16))
    with pytest.raises(TypeError, match=r"closure`? to .*return.* the loss.* but got (Tensor|float)"):
        attack(model, replace=True).attack(closure=closure(model))


def test_a_callback_takes_no_model_and_a_method_no_callback():
    model = Mean(nn.Embedding(VOCAB, 16))
    for entry in METHODS.values():
        with pytest.raises(TypeError, match=r"but got a model. The Trainer has the model"):
            entry.callback(model)
        if entry.method.needs_model:
            with pytest.raises(TypeError, match=f"`model` to be a torch.nn.Module, but got {entry.callback.__name__}"):
                entry.method(entry.callback())


def test_a_callback_in_the_trainer_of_transformers_is_named():
    with pytest.raises(AttributeError, match=r"'FGMCallback' object has no attribute 'on_.* for fastNLP's Trainer"):
        transformers.Trainer(nn.Linear(1, 1), callbacks=[METHODS["FGM"].callback()])


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("attack", [FGM, PGD], ids=["fgm", "pgd"])
def test_a_loss_divided_by_the_tokens_of_the_batch_is_of_the_same_size_on_a_part(attack, replace):
    """
    As transformers' Trainer gives `num_items_in_batch`. Half of the examples count double, so that without a
    perturbation the mean over all parts is the loss of the batch.
    """
    if "kwargs" not in inspect.signature(transformers.GPT2LMHeadModel.forward).parameters:
        pytest.skip("GPT-2 of this transformers takes no `num_items_in_batch`")
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(5, VOCAB, (4, 8))
    labels = ids.clone()
    labels[0, 5:], labels[2, 3:] = -100, -100
    number = (labels[:, 1:] != -100).sum()
    batch, seen = {"input_ids": ids, "labels": labels, "num_items_in_batch": number}, []

    def closure(fields):
        loss = model(**fields).loss
        logits = model(input_ids=fields["input_ids"]).logits[:, :-1].flatten(0, 1)
        total = cross_entropy(logits, fields["labels"][:, 1:].flatten(), reduction="sum")
        seen.append((loss.item(), (total / number * 4 / len(fields["labels"])).item()))
        return loss

    with attack(model, epsilon=0.0, fraction=0.5, replace=replace) as method:
        method.step(closure, batch)
    assert len(seen) >= 2
    assert [found for found, _ in seen] == pytest.approx([expected for _, expected in seen], rel=1e-5)


@pytest.mark.parametrize("regularizer", [VAT, RDrop], ids=lambda each: each.__name__)
def test_a_prediction_in_place_of_the_training_step_is_named(regularizer):
    model = nn.Sequential(nn.Embedding(60, 4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.randint(60, (3, 3))
    with pytest.raises(TypeError, match="`objective` to be a function of the batch, but got Tensor"):
        regularizer(model)(model(ids), {"ids": ids})
