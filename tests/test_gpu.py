"""What only a GPU can show: the same result as the CPU, half precision, NCCL, and no wait for the device."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import support
import torch
from fastNLP import Callback, Trainer
from processes import run

from fastnlp_adv import FGMCallback, FGSMCallback, PGDCallback, RDropCallback, SAMCallback

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore:R-Drop found no dropout"),
]

METHODS = {
    "none": list,
    "fgm": lambda: [FGMCallback()],
    "fgm sequence": lambda: [FGMCallback(granularity="sequence", replace=True)],
    "fgsm": lambda: [FGSMCallback()],
    "pgd": lambda: [PGDCallback()],
    "fgm part": lambda: [FGMCallback(fraction=0.5)],
    "fgm part replace": lambda: [FGMCallback(fraction=0.5, replace=True, granularity="token"), RDropCallback()],
    "sam": lambda: [SAMCallback(adaptive=True)],
    "rdrop": lambda: [RDropCallback()],
    "pgd + rdrop": lambda: [PGDCallback(), RDropCallback(mode="two_pass")],
}
each_method = pytest.mark.parametrize("method", METHODS)


def train(method, device, *extra, dropout=0.0, **kwargs):
    model = support.Bert(dropout)
    trainer = Trainer(
        model=model,
        driver="torch",
        device=device,
        train_dataloader=support.loader(),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05),
        n_epochs=2,
        callbacks=[*METHODS[method](), *extra],
        progress_bar=None,
        **kwargs,
    )
    trainer.run()
    return model.cpu(), trainer


@each_method
def test_gpu_and_cpu_agree(method):
    torch.backends.cuda.matmul.allow_tf32 = False
    assert support.distance(train(method, 0)[0], train(method, "cpu")[0]) < 1e-4


@each_method
def test_half_precision_trains(method):
    model, _ = train(method, 0, fp16=True)
    full, _ = train(method, 0)
    assert torch.isfinite(support.weights(model)).all()
    assert support.distance(model, full) < 0.05


class CountSynchronizations(Callback):
    """Counts the operations of each batch that wait for the device, the first batch aside."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.caught = warnings.catch_warnings(record=True)
        self.seen = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer):
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        self.counts.append(sum("synchronizing" in str(w.message) for w in self.seen))


@each_method
@pytest.mark.parametrize("fp16", [False, True])
def test_the_step_does_not_wait_for_the_device(method, fp16):
    ours, plain = CountSynchronizations(), CountSynchronizations()
    train(method, 0, ours, dropout=0.1, fp16=fp16)
    train("none", 0, plain, dropout=0.1, fp16=fp16)
    assert ours.counts[1:] == plain.counts[1:]


@each_method
def test_nccl_with_one_process(method, tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent / "helpers")!r})
import torch, support, test_gpu
model, trainer = test_gpu.train({method!r}, [0])
assert type(trainer.driver).__name__ == "TorchDDPDriver"
torch.save(model.state_dict(), {str(tmp_path / "model.pt")!r})
"""
    file = tmp_path / "train.py"
    file.write_text(script)
    done = run([sys.executable, file])
    assert done.returncode == 0, done.stderr[-4000:]
    model = support.Bert()
    model.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert support.distance(model, train(method, 0)[0]) < 1e-5
