"""Models with several predictions: the divergence is the sum over them, each with its mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from numbered import both, kl
from references import assert_same, gradients
from smoothness import unit
from support import bert_config
from torch import nn
from transformers import BertForQuestionAnswering

from fastnlp_adv import R3F, SMART, VAT, RDrop

SEED = 4
IDS = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(1))
SPANS = {"start_positions": torch.tensor([0, 2, 1, 5]), "end_positions": torch.tensor([3, 2, 4, 5])}
MODES = pytest.mark.parametrize("mode", ["concat", "two_pass"])


class TwoHeads(nn.Module):
    """An intent of each sentence and a slot of each word."""

    def __init__(self, dropout=0.0, form=tuple):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.drop = nn.Embedding(50, 6), nn.Dropout(dropout)
        self.intent, self.slots = nn.Linear(6, 3), nn.Linear(6, 4)
        self.form = form
        self.double()

    def predict(self, embedded):
        hidden = self.drop(torch.tanh(embedded + embedded.mean(1, keepdim=True)))
        return self.intent(hidden.mean(1)), self.slots(hidden)

    def step(self, batch):
        intent, slots = self.predict(self.words(batch["ids"]))
        loss = F.cross_entropy(intent, batch["intent"]) + F.cross_entropy(slots.mT, batch["labels"])
        pred = (intent, slots) if self.form is tuple else {"intent": intent, "slots": slots}
        return {"loss": loss, "pred": pred}


def sentences():
    labels = torch.where(IDS % 3 == 0, -100, IDS % 4)
    return {"ids": IDS, "intent": torch.tensor([0, 1, 2, 0]), "labels": labels}


@MODES
def test_question_answering_of_transformers(mode):
    torch.manual_seed(0)
    config = bert_config(dropout=0.3)
    config.num_labels = 2
    model = BertForQuestionAnswering(config).train()
    batch = {"input_ids": IDS, **SPANS}
    torch.manual_seed(1)
    found = RDrop(kl_weight=2.0, mode=mode)(lambda b: model(**b), batch)
    torch.manual_seed(1)
    if mode == "concat":
        outputs = model(**{name: torch.cat([value, value]) for name, value in batch.items()})
        loss, pairs = outputs.loss, [each.chunk(2) for each in (outputs.start_logits, outputs.end_logits)]
    else:
        first, second = model(**batch), model(**batch)
        loss = (first.loss + second.loss) / 2
        pairs = [(first.start_logits, second.start_logits), (first.end_logits, second.end_logits)]
    divergence = sum(both(p, q) for p, q in pairs) / 2
    torch.testing.assert_close(found["kl"], divergence.detach())
    torch.testing.assert_close(found["loss"], loss + 2.0 * divergence)
    for name, (p, q), pred, pred2 in zip(
        ("start_logits", "end_logits"), pairs, found["pred"], found["pred2"], strict=True
    ):
        torch.testing.assert_close([found[name], pred, pred2], [p, p, q])


@MODES
@pytest.mark.parametrize("form", [tuple, dict])
def test_each_prediction_has_its_mask(mode, form):
    model, batch = TwoHeads(dropout=0.4, form=form), sentences()
    found = RDrop(mode=mode)(model.step, batch)
    assert type(found["pred"]) is type(found["pred2"]) is form
    first, second = (tuple(found[n].values()) if form is dict else found[n] for n in ("pred", "pred2"))
    kept = batch["labels"] != -100
    expected = (both(first[0], second[0]) + both(first[1][kept], second[1][kept])) / 2
    torch.testing.assert_close(found["kl"], expected.detach())


def perturbed(name, distance, model, batch):
    """The perturbation of the definition, from the noise of the method."""
    embedded = model.words(batch["ids"]).detach()
    noise = torch.empty_like(embedded).normal_(generator=torch.Generator().manual_seed(SEED))
    if name == "R3F":
        return 0.3 * noise
    d = (0.1 * unit(noise) if name == "VAT" else 0.05 * noise).requires_grad_()
    (g,) = torch.autograd.grad(distance(d), d)
    if name == "VAT":
        return 0.7 * unit(g)
    return (d.detach() + 0.2 * torch.stack([slope / slope.abs().max() for slope in g])).clamp(-0.3, 0.3)


@pytest.mark.parametrize("form", [tuple, dict])
@pytest.mark.parametrize("name", ["VAT", "SMART", "R3F"])
def test_smoothness_is_that_of_the_definition(name, form):
    ours, theirs, batch = TwoHeads(form=form), TwoHeads(), sentences()
    method = {
        "VAT": lambda: VAT(ours, 0.7, xi=0.1),
        "SMART": lambda: SMART(ours, 0.3, alpha=0.2, noise=0.05),
        "R3F": lambda: R3F(ours, 0.3),
    }[name]()
    method.stream.generator = torch.Generator().manual_seed(SEED)
    outputs = method(ours.step, batch)
    outputs["loss"].backward()

    kept, way = batch["labels"] != -100, kl if name == "VAT" else both
    intent, slots = theirs.predict(theirs.words(batch["ids"]))

    def distance(d, hold=True):
        p = [each.detach() if hold else each for each in (intent, slots)]
        q = theirs.predict(theirs.words(batch["ids"]) + d)
        return way(p[0], q[0]) + way(p[1][kept], q[1][kept])

    term = distance(perturbed(name, distance, theirs, batch), hold=name == "VAT")
    loss = F.cross_entropy(intent, batch["intent"]) + F.cross_entropy(slots.mT, batch["labels"]) + term
    loss.backward()
    torch.testing.assert_close(outputs["loss"], loss)
    assert_same(gradients(ours), gradients(theirs), 1e-5)


@MODES
def test_what_is_no_prediction_is_refused(mode):
    model, batch = TwoHeads(), sentences()
    for pred, message in (
        ((), "got the entries"),
        ((torch.zeros(4, 3), "text"), "got the entries"),
        ((torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)), r"floating-point .* but got"),
    ):
        with pytest.raises(ValueError, match=message):
            RDrop(mode=mode)(lambda b, pred=pred: {**model.step(b), "pred": pred}, batch)
