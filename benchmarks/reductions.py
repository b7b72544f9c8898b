"""What distributed training sends: gradient buckets and bytes of an optimizer step, counted in two gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from fastNLP import Trainer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.memory import ROOT
from benchmarks.setting import Setting
from benchmarks.timing import Loader
from benchmarks.variants import Variant, headline

RANKS, STEPS = 2, 4


def count(setting: Setting) -> list[dict]:
    """A row for each variant, from processes that torchrun starts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
        command += ["-m", "benchmarks.reductions", json.dumps(asdict(setting)), str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"Expected {RANKS} processes to train, but they ended with:\n{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def count_here(setting: Setting, variant: Variant) -> dict:
    """The buckets that a rank reduces, and their bytes, per optimizer step."""
    sent: list[int] = []
    bare = setting.model()
    model = _counted(DistributedDataParallel(bare, broadcast_buffers=False), sent)
    trainer = Trainer(
        model=model,
        driver="torch",
        device=None,
        data_device="cpu",
        train_dataloader=Loader(setting.samples()),
        optimizers=torch.optim.SGD(bare.parameters(), lr=1e-4),
        callbacks=variant.callbacks(),
        batch_step_fn=variant.loop(bare) if variant.loop else None,
        n_epochs=STEPS,
        progress_bar=None,
        use_dist_sampler=False,
    )
    trainer.run()
    numel = sum(p.numel() * p.element_size() for p in bare.parameters())
    return {
        "variant": variant.name,
        "family": variant.family,
        "buckets": len(sent) / STEPS,
        "bytes": sum(sent) / STEPS,
        "reductions": sum(sent) / STEPS / numel,
    }


def _counted(model: DistributedDataParallel, sent: list[int]) -> DistributedDataParallel:
    def hook(state, bucket):  # torch reads annotations, and takes no postponed ones
        sent.append(bucket.buffer().numel() * bucket.buffer().element_size())
        future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    model.register_comm_hook(None, hook)
    return model


def main(setting: Setting, out: Path) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    rows = [count_here(setting, variant) for variant in headline()]
    if dist.get_rank() == 0:
        out.write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Setting(**json.loads(sys.argv[1])), Path(sys.argv[2]))
