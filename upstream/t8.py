"""
Run fastNLP's tutorial T8 as a script: `python upstream/t8.py NOTEBOOK`, or `python upstream/t8.py PATCH ...` for the
code cells that the patches change, where the notebook itself is out of reach.

T8 loads SST-2 and bert-base-uncased from a hub and trains on a GPU. The stand-ins: 48 made-up reviews for the data
set, a tokenizer that numbers words, a two-layer BERT with random weights, and the CPU. What T8 calls stays as it is.
"""

import functools
import json
import re
import sys
import types

import torch

# What the cells that the patches add find in the notebook: T8's model after the first patch, and data to train on.
PREAMBLE = """
import torch
from fastNLP import Accuracy, DataSet, Trainer, prepare_torch_dataloader
from torch import nn
from torch.optim import AdamW
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model_checkpoint = "bert-base-uncased"
tokenizer = AutoTokenizer.from_pretrained(model_checkpoint)


class SeqClsModel(nn.Module):
    def __init__(self, num_labels, model_checkpoint):
        super().__init__()
        self.bert = AutoModelForSequenceClassification.from_pretrained(model_checkpoint, num_labels=num_labels)

    def train_step(self, input_ids, attention_mask, labels):
        output = self.bert(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": output.loss, "pred": output.logits}

    def evaluate_step(self, input_ids, attention_mask, labels):
        output = self.bert(input_ids=input_ids, attention_mask=attention_mask)
        return {"pred": output.logits.argmax(-1), "target": labels}


def made_up_loader(columns):
    samples = [tokenizer(sentence) for sentence in columns["sentence"]]
    samples = [{**sample, "labels": label} for sample, label in zip(samples, columns["label"])]
    collate = lambda batch: {key: torch.tensor([sample[key] for sample in batch]) for key in batch[0]}
    return prepare_torch_dataloader(DataSet({"index": list(range(len(samples)))}), batch_size=16,
        collate_fn=lambda batch: collate([samples[row["index"]] for row in batch]))


train_dataloader, evaluate_dataloader = made_up_loader(reviews), made_up_loader(reviews)
model = SeqClsModel(num_labels=2, model_checkpoint=model_checkpoint)
"""


def cells_of_notebook(path):
    """The sources of its code cells."""
    with open(path, encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def cells_of_patch(path):
    """The sources of the code cells that a patch of the notebook changes, as they are after it."""
    cell = re.compile(r'"cell_type": "code",\n(?:(?!"source").)*"source": \[\n(.*?)(?:,?\n\Z|\n   \])', re.DOTALL)
    with open(path, encoding="utf-8") as file:
        hunks = re.split(r"^@@.*\n", file.read(), flags=re.MULTILINE)[1:]
    after = ["".join(line[1:] for line in hunk.splitlines(True) if line[0] in "+ ") for hunk in hunks]
    cells = ["".join(json.loads("[" + source + "]")) for hunk in after for source in cell.findall(hunk)]
    # A patch leaves out what stays the same after its last change, here the calls that train.
    return [cell if "trainer.run()" in cell else cell + "\ntrainer.run()\n" for cell in cells]


def reviews():
    words = ["film", "plot", "cast", "music", "story", "scenes", "humour", "ending"]
    labels = [i % 2 for i in range(48)]
    sentences = ["the {} was {}".format(words[i % 8], ("dull", "lovely")[label]) for i, label in enumerate(labels)]
    return {"sentence": sentences, "label": labels}


class Split:
    """A split of a data set, which T8 slices."""

    def __getitem__(self, rows):
        return {name: values[rows] for name, values in reviews().items()}


class Tokenizer:
    @classmethod
    def from_pretrained(cls, name):
        return cls()

    def __call__(self, sentence, max_length=16, **_):
        ids = [2 + sum(map(ord, word)) % 97 for word in sentence.split()]
        padding = [0] * (max_length - len(ids))
        return {"input_ids": ids + padding, "attention_mask": [1] * len(ids) + padding}


class Model:
    @staticmethod
    def from_pretrained(name, num_labels):
        from transformers import BertConfig, BertForSequenceClassification

        return BertForSequenceClassification(
            BertConfig(
                vocab_size=100,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=128,
                num_labels=num_labels,
            )
        )


def stand_in():
    """Put the stand-ins where T8 imports from."""
    import fastNLP
    import transformers

    datasets = types.ModuleType("datasets")
    datasets.load_dataset = lambda *name, split: [Split() for _ in split]
    sys.modules["datasets"] = datasets
    transformers.AutoTokenizer = Tokenizer
    transformers.AutoModelForSequenceClassification = Model
    if int(torch.__version__.split(".")[0]) >= 2:  # refuses fastNLP's prefetch_factor=2 without workers
        fastNLP.prepare_torch_dataloader = functools.partial(fastNLP.prepare_torch_dataloader, prefetch_factor=None)


def main(paths):
    if paths[0].endswith(".ipynb"):
        cells = cells_of_notebook(paths[0])
    else:
        cells = [PREAMBLE] + [cell for path in paths for cell in cells_of_patch(path)]
        if len(cells) != 4:
            sys.exit(f"Expected 3 code cells in the patches, but got {len(cells) - 1}.")
    source = re.sub(r"device=(5|'cuda')", "device='cpu'", "\n\n".join(cells))
    stand_in()
    torch.manual_seed(0)
    names = {"__name__": "__main__", "reviews": reviews()}
    exec(compile(source, "T8", "exec"), names)
    weights = torch.cat([p.detach().flatten() for p in names["model"].parameters()])
    if not torch.isfinite(weights).all():
        sys.exit("Expected T8 to train, but its weights are not finite.")
    print("T8: {} code cells ran, {} trainings".format(len(cells), source.count("trainer.run()")))


if __name__ == "__main__":
    main(sys.argv[1:])
