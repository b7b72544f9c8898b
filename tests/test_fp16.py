"""Scaled gradients: the same training, and an overflow that skips attack and step.

``fp16=True`` needs CUDA, but a loss scaler does not: here the Trainer gets one for the CPU.
"""

from __future__ import annotations

import pytest
import support
import torch
from fastNLP import Callback

from fastnlp_adv import FGMCallback, FGSMCallback, PGDCallback, RDropCallback

pytestmark = support.since_torch(2, 3, "a gradient scaler for the CPU")

METHODS = {
    "fgm": lambda: [FGMCallback()],
    "fgm replace": lambda: [FGMCallback(replace=True)],
    "fgm weights": lambda: [FGMCallback(emb_name="head")],
    "fgsm": lambda: [FGSMCallback()],
    "pgd": lambda: [PGDCallback()],
    "rdrop": lambda: [RDropCallback()],
    "pgd + rdrop": lambda: [PGDCallback(), RDropCallback(mode="two_pass")],
}
each_method = pytest.mark.parametrize("method", METHODS)


class Scaled(Callback):
    """Gives the Trainer a gradient scaler, and keeps the scale of every step."""

    def __init__(self, scale):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        self.scales = []

    def on_after_trainer_initialized(self, trainer, driver):
        driver.grad_scaler = self.scaler

    def on_train_batch_end(self, trainer):
        self.scales.append(self.scaler.get_scale())


def train(method, *extra, **kwargs):
    model = support.Classifier()
    trainer = support.train(model, [*METHODS[method](), *extra], **kwargs)
    return model, trainer


@each_method
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_scale_drops_out(method, accumulation):
    scaled, trainer = train(method, Scaled(2.0**14), accumulation_steps=accumulation)
    plain, reference = train(method, accumulation_steps=accumulation)
    assert support.distance(scaled, plain) < 1e-6
    for name, value in reference.state["adv"].items():
        torch.testing.assert_close(trainer.state["adv"][name], value, rtol=1e-4, atol=1e-6)


class Steep(support.Classifier):
    """A loss so large that a scale near the end of single precision overflows, until it has been halved a few times."""

    def train_step(self, input_ids, labels):
        outputs = super().train_step(input_ids, labels)
        return {**outputs, "loss": outputs["loss"] * 1e3}


@each_method
def test_an_overflow_skips_attack_and_step_and_training_goes_on(method):
    seen = Scaled(2.0**127)
    trainer = support.build(model := Steep(), [*METHODS[method](), seen], n_epochs=1, n_batches=-1)
    before = support.weights(model)
    trainer.run()
    assert torch.equal(support.weights(model), before)
    assert seen.scales == [2.0**power for power in range(126, 120, -1)]
    if method != "rdrop":
        assert trainer.state["adv"]["skipped"] >= len(seen.scales)
        assert trainer.state["adv"]["perturbation_norm"] == 0

    seen = Scaled(2.0**127)
    support.train(model := Steep(), [*METHODS[method](), seen], n_batches=40, lr=1e-5)
    assert torch.isfinite(support.weights(model)).all()
    assert seen.scales[-1] == seen.scales[-10] < 2.0**126
    assert not torch.equal(support.weights(model), before)
