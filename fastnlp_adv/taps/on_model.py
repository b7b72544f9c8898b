"""The taps on all that an ``emb_name`` stands for."""

from __future__ import annotations

import warnings

from torch import nn

from .embedding import EmbeddingTap, Tap
from .find import find_embeddings
from .layout import Mask
from .shards import refuse_shards
from .weight import WeightTap


def taps_on(
    model: nn.Module, emb_name: str | None, granularity: str, mask: Mask = None, *, outputs: bool = False
) -> list[Tap]:
    """
    Build taps on the lookups that ``emb_name`` matches (see :func:`~fastnlp_adv.taps.find_embeddings`) and, with
    ``"vocab"``, on other parameters. Raise ``ValueError`` if nothing matches, or a parameter cannot be perturbed so.
    """
    matches = find_embeddings(model, emb_name, outputs=outputs)
    if matches.tables and granularity != "vocab":
        name, kind = next(iter(matches.tables.items()))
        raise ValueError(
            f"Expected embedding `{name}` to look up as nn.Embedding does, but got {kind}, which has a custom "
            "forward: only its weight can be perturbed. Use FGM or PGD with `granularity='vocab'`, NEFTune, or another "
            "`emb_name`."
        )
    if matches.weights and granularity != "vocab":
        raise ValueError(
            f"Expected `granularity` to be 'vocab' for parameters that are not looked up, but got {granularity!r} with "
            f"{', '.join(f'`{name}`' for name in matches.weights)}. Choose an `emb_name` that matches embeddings only, "
            "or 'vocab' where the method has this argument."
        )
    refuse_shards(matches.weights.items(), f"`emb_name={emb_name!r}`, which matches parameters that are not looked up,")
    tables = [*(embedding.name for embedding in matches.embeddings), *matches.tables]
    rest = [f"`{name}`" for name in matches.weights if name not in matches.tables]
    if tables and rest:
        looked_up, others = ", ".join(f"`{name}`" for name in tables), ", ".join(rest)
        warnings.warn(
            f"`emb_name={emb_name!r}` matches embeddings ({looked_up}) and also parameters that are perturbed "
            f"in place: {others} are not looked up. If you mean embeddings only, give more of their names, or a glob.",
            stacklevel=2,
        )
    taps: list[Tap] = [EmbeddingTap(embedding, granularity, model, mask) for embedding in matches.embeddings]
    return taps + [WeightTap(name, param) for name, param in matches.weights.items()]
