"""
With which arguments FGM learns: a pretrained encoder at two learning rates, and two models from scratch.
"""

from __future__ import annotations

import argparse
import re
from typing import ClassVar

import torch
from data import Data
from fastNLP import DataSet, Vocabulary, prepare_torch_dataloader
from fastNLP.io import DataBundle
from fastNLP.models.torch import CNNText
from models import load_model
from torch import Tensor, nn
from train_text_classification import TextClassifier, build, tokenize

from fastnlp_adv import robust_evaluate, schedule
from studies.methods import PLAIN, WHOLE, callbacks_of
from studies.tasks.base import Outcomes, Task, learned, load_part, majority

RADIUS, ATTACK_STEPS, FEATURES, MAX_LENGTH = 0.1, 5, 64, 64
# short, at a high rate
_ENCODER = {"train_size": 1600, "epochs": 1, "batch_size": 16, "test_size": 2000, "attack_size": 200}
_SCRATCH = {"train_size": 8000, "epochs": 3, "batch_size": 32, "test_size": 1000, "attack_size": 500, "lr": 2e-3}
MODELS = {
    "bilstm": _SCRATCH,
    "cnn": _SCRATCH,
    "minilm-2e-4": {**_ENCODER, "lr": 2e-4},
    "minilm-1e-4": {**_ENCODER, "lr": 1e-4},
}


class BiLSTM(nn.Module):
    def __init__(self, words: int, labels: int):
        super().__init__()
        self.embedding = nn.Embedding(words, FEATURES, padding_idx=0)
        self.lstm = nn.LSTM(FEATURES, FEATURES, batch_first=True, bidirectional=True)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(2 * FEATURES, labels)

    def forward(self, words: Tensor) -> dict[str, Tensor]:
        return {"pred": self.head(self.dropout(self.lstm(self.embedding(words))[0].amax(1)))}


class FromScratch(nn.Module):
    """Gives a model of words the steps that the examples train and evaluate."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def train_step(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        pred = self.backbone(input_ids)["pred"]
        return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}

    def evaluate_step(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"pred": self.backbone(input_ids)["pred"].argmax(-1), "target": labels}


class Defaults(Task):
    title = "With which defaults does FGM learn?"
    settings: ClassVar = {
        "dataset": ("snippets", "snippets, a .csv or .tsv file, or a data set on the hub"),
        "split": ("test", "test, or validation: other texts, to choose arguments on"),
        "fall": (schedule.FALL, "relative fall of the loss at which `warmup=auto` is at its whole epsilon"),
        "train_size": (0, "texts to train on, 0 for as many as the model has in this study"),
        "attack_size": (0, "test texts to attack, 0 for as many as the model has in this study"),
    }
    choices: ClassVar = {"split": ("test", "validation")}
    methods: ClassVar = [PLAIN, WHOLE, f"{WHOLE} warmup=1.0", f"{WHOLE} warmup=auto"]
    models: ClassVar = {
        "bilstm": "BiLSTM from scratch",
        "cnn": "fastNLP's `CNNText` from scratch",
        "minilm-2e-4": "MiniLM, learning rate 2e-4",
        "minilm-1e-4": "MiniLM, learning rate 1e-4",
    }

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        load_part(args.dataset, 1, 1)  # may raise, before anything is written

    @staticmethod
    def columns(settings: dict) -> dict[str, str]:
        return {"clean": "clean", "attacked_0": "ε = 0", f"attacked_{RADIUS:g}": f"ε = {RADIUS:g}"}

    @staticmethod
    def described(settings: dict) -> str:
        given = {key: settings[key] for key in ("train_size", "attack_size") if settings[key]}
        sizes = "; ".join(
            "{model}: {train_size} texts, number of epochs {epochs}, batch size {batch_size}, learning rate {lr:g}, "
            "{test_size} test texts, of which {attack_size} are attacked".format(
                model=model, **{**MODELS[model], **given}
            )
            for model in MODELS
        )
        return (
            f"Four models on texts of `{settings['dataset']}`, at most {MAX_LENGTH} tokens. ε is the radius (l2, per "
            f"text) of an attack on the word vectors, in units of their mean norm, {ATTACK_STEPS} steps from one "
            f"start; ε = 0 is no attack, on the same texts. {sizes}."
        )

    def run(self, model: str, method: str, seed: int) -> tuple[dict[str, float], Outcomes]:
        given = {key: getattr(self.args, key) for key in ("train_size", "attack_size") if getattr(self.args, key)}
        args = argparse.Namespace(**{**vars(self.args), **MODELS[model], **given, "seed": seed, "device": "cpu"})
        schedule.FALL = args.fall
        data = load_part(args.dataset, args.train_size, args.test_size, args.split)
        torch.manual_seed(seed)
        network, bundle = _network(model, data)
        callbacks = callbacks_of(method)
        trainer = build(network, bundle, callbacks, args, evaluate_every=-args.epochs - 1, progress_bar=None)
        trainer.run(catch_KeyboardInterrupt=False)
        clean = trainer.evaluator.run()["acc#accuracy"]
        right: dict[float, list] = {0.0: [], RADIUS: []}

        def note(radius: float, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
            right[radius] += [[float(each), 1.0] for each in outputs["pred"].argmax(-1) == batch["labels"]]

        attacked = prepare_torch_dataloader(bundle.get_dataset("test")[: args.attack_size], batch_size=args.batch_size)
        options = {"epsilons": [RADIUS], "steps": ATTACK_STEPS, "restarts": 1}
        robust_evaluate(network, attacked, update=note, step=lambda batch: network.train_step(**batch), **options)
        has_learned = learned(clean, majority(data.test["label"]), len(data.test))
        measured = {"learned": has_learned, "clean": clean, "steps": trainer.global_forward_batches}
        return measured, {f"attacked_{radius:g}": counts for radius, counts in right.items()}


def _network(name: str, data: Data) -> tuple[nn.Module, DataBundle]:
    if name.startswith("minilm"):
        backbone, tokenizer = load_model("minilm", data.num_labels)
        return TextClassifier(backbone), tokenize(data, tokenizer, MAX_LENGTH)
    parts = {
        part: DataSet(
            {
                "input_ids": [re.findall(r"\w+|[^\w\s]", text.lower())[:MAX_LENGTH] for text in texts["text"]],
                "labels": list(texts["label"]),
            }
        )
        for part, texts in (("train", data.train), ("test", data.test))
    }
    vocabulary = Vocabulary(min_freq=2).from_dataset(parts["train"], field_name="input_ids")
    vocabulary.index_dataset(*parts.values(), field_name="input_ids")
    bundle = DataBundle(datasets=parts)
    if name == "bilstm":
        return FromScratch(BiLSTM(len(vocabulary), data.num_labels)), bundle
    return FromScratch(CNNText((len(vocabulary), FEATURES), data.num_labels)), bundle
