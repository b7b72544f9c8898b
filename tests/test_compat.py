"""Each scenario is a documented use. It must fail on unchanged fastNLP, and work once its repair is made."""

import contextlib
import importlib
import json
import os
import pickle
import subprocess
import sys
from array import array
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fastNLP import (
    Accuracy,
    BucketedBatchSampler,
    Callback,
    CheckpointCallback,
    DataSet,
    LoadBestModelCallback,
    RandomBatchSampler,
    RandomSampler,
    SequentialSampler,
    SortedSampler,
    TorchDataLoader,
    Trainer,
    prepare_dataloader,
    prepare_torch_dataloader,
)
from fastNLP.core.dataloaders import MixDataLoader
from fastNLP.core.dataloaders.torch_dataloader import fdl, mix_dataloader
from fastNLP.core.drivers.choose_driver import choose_driver
from fastNLP.core.drivers.torch_driver import TorchFSDPDriver
from fastNLP.core.drivers.torch_driver.torch_driver import TorchDriver
from fastNLP.io import DataBundle
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, Subset, WeightedRandomSampler

import fastnlp_adv
from fastnlp_adv import compat


class Bag(nn.Module):
    """The mean of the embeddings of a few tokens, then two classes."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.classify = nn.Linear(4, 2)

    def train_step(self, tokens, target):
        logits = self.classify(self.embed(tokens).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, target), "pred": logits.argmax(-1)}

    def evaluate_step(self, tokens, target):
        return {"pred": self.train_step(tokens, target)["pred"]}


class ArrayState(Callback):
    """Saves numbers, arrays and numpy's random state, as users' callbacks do."""

    def on_save_checkpoint(self, trainer):
        numbers = {"best": np.float64(0.75), "count": np.int64(3), "done": np.bool_(True)}
        return {**numbers, "curve": np.float32([[1, 2]]), "order": array("I", [2, 0]), "rng": RNG}

    def on_load_checkpoint(self, trainer, states):
        self.loaded = states


class Diary(Callback):
    """Writes down which examples are trained, and after how many batches an epoch ends."""

    def __init__(self):
        super().__init__()
        self.batches, self.ends = [], []

    def on_train_batch_begin(self, trainer, batch, indices):
        self.batches.append(indices)

    def on_train_epoch_end(self, trainer):
        self.ends.append(trainer.global_forward_batches)


SAMPLERS = [RandomSampler, SequentialSampler, RandomBatchSampler, BucketedBatchSampler]
RNG = np.random.RandomState(0).get_state()
ROWS = {"tokens": [[1, 2, 3][: 1 + i % 3] for i in range(12)], "target": [i % 2 for i in range(12)]}


def loader(**options):
    return prepare_torch_dataloader(DataSet(ROWS), batch_size=4, prefetch_factor=None, **options)


def make_trainer(dataloader, seed=0, **options):
    torch.manual_seed(seed)
    model = Bag()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    options = {"n_epochs": 2, "driver": "torch", "device": "cpu", "progress_bar": None, **options}
    return Trainer(model=model, optimizers=optimizer, train_dataloader=dataloader, **options)


def save_halfway(folder, *callbacks):
    """Train to the end, and leave a checkpoint of the first epoch; returns the trainer and the checkpoint's folder."""
    save = CheckpointCallback(folder=folder, every_n_epochs=1, save_object="trainer")
    trainer = make_trainer(loader(), callbacks=[save, *callbacks])
    trainer.run()
    return trainer, str(next(Path(folder).glob("*/trainer-epoch_1")))


def assert_same_weights(one, other):
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=0, atol=0)


def use_defaults():
    data = DataSet(ROWS)
    for each in (TorchDataLoader(data), prepare_torch_dataloader(data), prepare_dataloader(data, backend="torch")):
        (batch,) = each
        assert batch["tokens"].tolist() == [[*row, 0, 0][:3] for row in ROWS["tokens"]]
    for several in ({"train": data, "dev": data}, DataBundle(datasets={"train": data, "dev": data})):
        loaders = prepare_torch_dataloader(several)
        metrics = {"accuracy": Accuracy()}
        trainer = make_trainer(loaders["train"], evaluate_dataloaders=loaders["dev"], metrics=metrics)
        trainer.run()
        assert 0 <= trainer.evaluator.run()["acc#accuracy"] <= 1


def mix_data_sets():
    mixed = MixDataLoader({"one": DataSet(ROWS), "two": DataSet(ROWS)}, mode="polling", batch_size=6)
    assert [len(batch["target"]) for batch in mixed] == [6, 6, 6, 6]
    make_trainer(mixed).run()


def fetch_batches():
    import datasets

    rows = [{"tokens": [i, i], "target": i % 2} for i in range(4)]
    for data in (datasets.Dataset.from_list(rows), Subset(rows, [0, 1, 2, 3])):
        tokens = [batch["tokens"].tolist() for batch in TorchDataLoader(data, batch_size=2, prefetch_factor=None)]
        assert tokens == [[[0, 0], [1, 1]], [[2, 2], [3, 3]]]
    indices = TorchDataLoader(Subset(rows, [3, 2]), batch_size=2, prefetch_factor=None)
    assert [(batch["target"].tolist(), indices.get_batch_indices()) for batch in indices] == [([1, 0], [0, 1])]


def save_models():
    with TemporaryDirectory() as folder:
        trained = make_trainer(loader())
        for only_weights, new in ((True, str(Path(folder, "a", "b"))), (False, Path(folder, "c"))):
            trained.save_model(new, only_weights)
            trained.save_model(new, only_state_dict=only_weights)  # there now
            assert Path(new, "fastnlp_model.pkl.tar").stat().st_size
        other = make_trainer(loader(), seed=1)
        other.load_model(str(Path(folder, "a", "b")))
    assert_same_weights(trained.model, other.model)


def load_models():
    best = LoadBestModelCallback(monitor="accuracy", only_state_dict=False)
    dev, metrics = loader(), {"accuracy": Accuracy()}
    trained = make_trainer(loader(), evaluate_dataloaders=dev, metrics=metrics, callbacks=[best])
    trained.run()
    with TemporaryDirectory() as folder:
        trained.save_model(folder)
        other = make_trainer(loader(), seed=1)
        other.load_model(folder, only_state_dict=False)
    assert_same_weights(trained.model, other.model)


def resume_arrays():
    with TemporaryDirectory() as folder:
        trained, checkpoint = save_halfway(folder, ArrayState())
        restored = ArrayState()
        resumed = make_trainer(loader(), seed=1, callbacks=[restored])
        resumed.run(resume_from=checkpoint)
    np.testing.assert_equal(restored.loaded, ArrayState().on_save_checkpoint(None))
    assert restored.loaded["curve"].dtype == np.float32
    assert_same_weights(trained.model, resumed.model)


def resume_weights():
    with TemporaryDirectory() as folder:
        _, checkpoint = save_halfway(folder)
        trainer = make_trainer(loader(), seed=1)
        trainer.load_checkpoint(checkpoint, resume_training=False)
        saved = torch.load(Path(checkpoint, "fastnlp_model.pkl.tar"))
        torch.testing.assert_close(dict(trainer.driver.unwrap_model().state_dict()), saved, rtol=0, atol=0)
        trainer.run(resume_from=checkpoint, resume_training=False)
    assert trainer.global_forward_batches == 2 * 3


def train_saving(folder, after=None):
    """Save every batch; resume after one in a new Trainer, which writes its checkpoints to the same folder."""
    (checkpoint,) = Path(folder).glob(f"*/trainer-epoch_0-batch_{after}") if after else (None,)
    save = CheckpointCallback(folder=folder, every_n_batches=1, save_object="trainer")
    trainer = make_trainer(loader(shuffle=True), seed=int(after is not None), callbacks=[save])
    trainer.run(resume_from=checkpoint and str(checkpoint))
    return trainer.model


def resume_after_an_epoch():
    with TemporaryDirectory() as folder:
        assert_same_weights(train_saving(folder), train_saving(folder, after=3))


def resume_twice():
    with TemporaryDirectory() as folder:
        whole = train_saving(folder)
        assert_same_weights(whole, train_saving(folder, after=1))
        assert_same_weights(whole, train_saving(folder, after=2))


@contextlib.contextmanager
def ranks():
    """Set up the environment of torchrun with one rank, unless there are ranks."""
    if dist.is_initialized():
        yield
        return
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "FASTNLP_BACKEND_LAUNCH": "1"}
    os.environ.update(one)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name in one:
            del os.environ[name]


def sharded():
    torch.manual_seed(0)
    model = Bag()
    model.forward = model.train_step
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def sharded_trainer(**options):
    model = sharded()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    data = TorchDataLoader(DataSet(ROWS), batch_size=2, prefetch_factor=None)
    options = {"driver": "torch_fsdp", "device": None, "data_device": "cpu", "progress_bar": None, **options}
    return Trainer(model=model, optimizers=optimizer, train_dataloader=data, n_epochs=2, **options)


def shard():
    with ranks():
        driver = choose_driver(sharded(), "torch_fsdp", None, data_device="cpu")
    assert isinstance(driver, TorchFSDPDriver)


def train_shards():
    with ranks():
        driver = TorchFSDPDriver(sharded(), None, is_pull_by_torch_run=True, data_device="cpu")
        trainer = sharded_trainer(driver=driver)
        assert isinstance(trainer.driver.unwrap_model(), Bag)
        trainer.run()


def resume_shards():
    with ranks(), TemporaryDirectory() as folder:
        trained = sharded_trainer()
        trained.run()
        trained.save_checkpoint(folder)
        resumed = sharded_trainer()
        resumed.load_checkpoint(folder)
        for one, other in zip(trained.driver.model.parameters(), resumed.driver.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


#: the scenario of each repair, and the kind of its error without it
SCENARIOS = {
    "prefetch_factor": (use_defaults, "ValueError"),
    "mix_prefetch_factor": (mix_data_sets, "ValueError"),
    "batched_fetch": (fetch_batches, "TypeError"),  # raised by the scenario: it gets a list of letters for a batch
    "save_to_new_folder": (save_models, "RuntimeError"),
    "load_whole_model": (load_models, "UnpicklingError"),
    "load_arrays": (resume_arrays, "UnpicklingError"),
    "resume_weights_only": (resume_weights, "AttributeError"),
    "finished_epoch": (resume_after_an_epoch, "AssertionError"),
    "resume_again": (resume_twice, "AssertionError"),
    "fsdp_unwrap": (train_shards, "AttributeError"),
    "fsdp_launch": (shard, "RuntimeError"),
    "fsdp_checkpoints": (resume_shards, "RuntimeError"),
}
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
if TORCH < (2, 6):  # which shards only on a GPU
    SCENARIOS = {name: each for name, each in SCENARIOS.items() if not name.startswith("fsdp")}
REFUSES = TORCH >= (2, 6)
#: the repairs whose fault this version of torch brings out
NEEDED = [name for name in SCENARIOS if REFUSES or name not in ("load_whole_model", "load_arrays")]


def failures(names):
    """Which of these scenarios fail now, each with the kind of its error."""
    failed = {}
    for name in names:
        try:
            SCENARIOS[name][0]()
        except Exception as error:
            failed[name] = type(error).__name__
    return failed


def main():
    """For a fresh interpreter: report the scenarios that fail on unchanged fastNLP, and after each repair."""
    names = list(SCENARIOS)
    report = {"": failures(names)}
    for index, (name, each) in enumerate(compat.REPAIRS.items()):
        each()
        report[name] = failures(names[index:])
    print(json.dumps(report))


def test_each_scenario_fails_until_its_own_repair_is_made():
    # In an interpreter of its own, since repairs cannot be taken back.
    command = [sys.executable, "-m", "tests.test_compat"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    left = {name: SCENARIOS[name][1] for name in NEEDED}
    expected = {"": dict(left)}
    for name in compat.REPAIRS:
        left.pop(name, None)
        expected[name] = dict(left)
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def patched():
    """Everything that a repair may write to."""
    names = [name for name in dir(TorchDriver) if name.startswith(("load", "save"))]
    return [
        TorchDataLoader.__init__,
        MixDataLoader.__init__,
        mix_dataloader.torchversion,
        fdl._FDataSet.__getitems__,
        *(getattr(TorchDriver, name) for name in names),
        *(sampler.load_state_dict for sampler in SAMPLERS),
        *(sampler.__iter__ for sampler in SAMPLERS),
        Trainer.save_checkpoint,
        Trainer.save_model,
        *(getattr(TorchFSDPDriver, name) for name in (*names, "unwrap_model", "get_optimizer_state")),
    ]


def test_all_repairs_together_are_made_once(monkeypatch):
    """Another copy of the package finds all repaired, and leaves it so."""
    assert compat.repair() == tuple(NEEDED)
    assert failures(SCENARIOS) == {}
    before = patched()
    assert compat.repair() == tuple(NEEDED)
    for name in [name for name in sys.modules if name.startswith("fastnlp_adv.compat")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(fastnlp_adv, "compat", compat)  # to be put back: the import sets the other
    fresh = importlib.import_module("fastnlp_adv.compat")
    assert fresh is not compat
    assert fresh.repair() == ()
    assert [each() for each in fresh.REPAIRS.values()] == [False] * len(compat.REPAIRS)
    assert patched() == before


@pytest.mark.skipif(not REFUSES, reason="torch.load refuses files of more than weights from torch 2.6 on")
def test_torch_stays_as_it_is(tmp_path):
    """And a whole model is not loaded unasked."""
    compat.repair()
    with pytest.raises(ValueError, match="prefetch_factor"):
        DataLoader([0], prefetch_factor=2)
    trainer = make_trainer(loader())
    trainer.save_model(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "fastnlp_model.pkl.tar")
    with pytest.raises(pickle.UnpicklingError, match="only_state_dict=False"):
        trainer.load_model(tmp_path)
    importlib.import_module("torch._dynamo")  # registers classes of its own, when something imports it
    safe = torch.serialization.get_safe_globals()
    resume_arrays()
    assert set(torch.serialization.get_safe_globals()) == set(safe)


SAMPLING = {
    "shuffled": lambda data: {"shuffle": True},
    "in order": lambda data: {"shuffle": False},
    "sequential": lambda data: {"sampler": SequentialSampler(data)},
    "sorted": lambda data: {"sampler": SortedSampler(data, length="tokens")},
    "random batches": lambda data: {"batch_sampler": RandomBatchSampler(data, batch_size=5)},
    "batches in order": lambda data: {"batch_sampler": RandomBatchSampler(data, batch_size=5, shuffle=False)},
    "buckets": lambda data: {"batch_sampler": BucketedBatchSampler(data, length="tokens", batch_size=5)},
    "unknown to fastNLP": lambda data: {"sampler": WeightedRandomSampler([1.0] * len(data), len(data))},
}
DRAWN_ANEW = ("random batches", "buckets")  # these put the rest of an epoch into new batches


def examples(batches):
    return sorted(index for batch in batches for index in batch)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_resume_after_any_batch(tmp_path, sampling):
    compat.repair()
    data = DataSet(ROWS)
    epochs = 1 if sampling == "unknown to fastNLP" else 2  # torch draws its second epoch again

    def train(*callbacks, **run):
        torch.manual_seed(0)
        diary, options = Diary(), SAMPLING[sampling](data)
        dataloader = TorchDataLoader(data, batch_size=5, **options)
        make_trainer(dataloader, n_epochs=epochs, callbacks=[diary, *callbacks]).run(**run)
        return diary

    whole = train(CheckpointCallback(folder=tmp_path, every_n_batches=1, save_object="trainer"))
    assert whole.ends == [3, 6][:epochs]
    for done in range(1, 3 * epochs):
        rest = train(resume_from=str(next(tmp_path.glob(f"*/trainer-epoch_*-batch_{done}"))))
        left = -done % 3  # batches of the epoch in which it was interrupted
        assert examples(rest.batches[:left]) == examples(whole.batches[done:][:left])
        assert rest.batches[left:] == whole.batches[done:][left:]
        assert rest.batches == whole.batches[done:] or sampling in DRAWN_ANEW
        assert rest.ends == [end for end in whole.ends if end >= done]
    assert train(resume_from=str(next(tmp_path.glob(f"*/trainer-epoch_*-batch_{3 * epochs}")))).batches == []


if __name__ == "__main__":
    main()
