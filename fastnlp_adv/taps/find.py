"""Which embeddings a model has, and which of them an ``emb_name`` stands for."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..functional import group_norm
from .shards import is_shard, named_weights

#: the words of a name, which dots, underscores, digits and capitals separate
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
#: the words of tables of positions
_POSITIONS = re.compile(r"(abs|rel)?(pos(ition(s|al)?)?|wpe|pe)(emb(ed)?(ding)?s?|enc(od(er|ing)s?)?)?", re.IGNORECASE)


def described(name: str, shape: Sequence[int], more: str = "") -> str:
    """
    Return a parameter's name and shape, and ``more`` after the shape.

    Example::

        >>> described("words.weight", (100, 8), ", frozen")
        '`words.weight` (100 x 8, frozen)'
    """
    return f"`{name}` ({' x '.join(map(str, shape))}{more})"


@dataclass
class Embedding:
    """
    An embedding weight and the modules that look it up.

    :param name: the weight's name in the model.
    :param weight: the weight, of shape ``(rows, features)``, or this process's shard of it.
    :param modules: the modules that look it up; several when it is shared, as in encoder-decoder models. Each is an
        :class:`torch.nn.Embedding`, or PEFT's layer that takes its place (see :func:`lookup_of`).
    """

    name: str
    weight: Tensor
    modules: list[nn.Module]

    def describe(self, *, with_rows: bool = False) -> str:
        length = self.row_length() if with_rows else None
        rows = "sharded" if length is None else f"rows {length:.3g} long on average"
        return described(self.name, self.shape, f", {rows}" if with_rows else "")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight, ``(rows, features)``."""
        if self.weight.dim() == 2 or not self.modules:
            return tuple(self.weight.shape)
        table = lookup_of(self.modules[0])
        return table.num_embeddings, table.embedding_dim

    def row_length(self) -> float | None:
        """
        Return the mean l2 norm of the rows; it reads the whole weight, and synchronizes. ``None`` where the weight is
        sharded: all processes would have to ask at once.
        """
        if is_shard(self.weight) or self.weight.is_meta:
            return None
        return group_norm(self.weight.detach(), dims=(1,)).mean().item()


@dataclass
class Matches:
    """
    The parameters that an ``emb_name`` matches.

    :param embeddings: the embeddings.
    :param weights: other parameters, by name; they can only be perturbed in place.
    :param tables: the weights of embeddings with a forward of their own, and the names of their classes.
    """

    embeddings: list[Embedding] = field(default_factory=list)
    weights: dict[str, nn.Parameter] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [embedding.name for embedding in self.embeddings] + list(self.weights)


def find_embeddings(model: nn.Module, emb_name: str | None = None, *, outputs: bool = False) -> Matches:
    r"""
    Find the parameters of a model that an attack is to perturb.

    :param model: the model.
    :param emb_name: part of a parameter's name (``"word_embeddings"``), a glob (``"encoder.*.weight"``), or ``None``
        for the input embedding: ``get_input_embeddings()`` where the model or parts of it have this method, of
        each part if they differ, as in two towers; else the only :class:`torch.nn.Embedding`, else the one with the
        most rows that is not named after positions (has no word like ``pos``, ``position``, ``positional``, ``wpe`` or
        ``pe`` in its name), and all of the same shape whose names differ from it in a number only.
    :param outputs: True for a method that needs only the outputs of lookups, so any embedding will do.
    :return: the embeddings, and the matched parameters that are not looked up.
    :raises ValueError: if nothing matches, or if a matched embedding cannot be perturbed.

    Example::

        >>> model = nn.ModuleDict({"words": nn.Embedding(100, 8), "positions": nn.Embedding(16, 8)})
        >>> find_embeddings(model).names()
        ['words.weight']
        >>> find_embeddings(model, "pos").names()
        ['positions.weight']
    """
    weights = named_weights(model)
    computed = {f"{name}.weight": m for name, m in model.named_modules() if _is_computed(m)}
    wanted = _input_embeddings(model, weights) if emb_name is None else []
    matches = Matches()
    for name, module in computed.items():
        if any(module is each for each in wanted) if emb_name is None else fits(name, emb_name):
            weight = nn.Parameter(module.weight.detach(), requires_grad=False)
            matches.embeddings.append(_checked(Embedding(name, weight, [module])))
    for name, param in weights.items():
        if any(name.startswith(f"{each[:-7]}.") for each in computed):
            continue  # the weight of an embedding is computed from it
        if not (any(each.weight is param for each in wanted) if emb_name is None else fits(name, emb_name)):
            continue
        modules = [module for module in _lookup_modules(model) if module.weight is param]
        if modules and (outputs or all(_looks_up(module) for module in modules)):
            matches.embeddings.append(_checked(Embedding(name, param, _asked(model, modules))))
        elif modules and not param.requires_grad:
            raise ValueError(
                f"Expected embedding `{name}` to be trainable, since {type(modules[0]).__name__} has a custom "
                "forward and its weight is perturbed in place, but got a frozen one. Unfreeze it, use NEFTune, or name "
                "another embedding with `emb_name`."
            )
        elif param.requires_grad and isinstance(param, nn.Parameter):
            matches.weights[name] = param
            if modules:
                matches.tables[name] = type(modules[0]).__name__
    # Rows that PEFT trains are looked up with the rest of their table, and so are perturbed already.
    rows = {id(p) for e in matches.embeddings for m in e.modules if _has_own_rows(m) for p in m.parameters()}
    matches.weights = {name: param for name, param in matches.weights.items() if id(param) not in rows}
    if not matches.names():
        raise ValueError(
            "Expected `emb_name` to be part of the name of a trainable parameter or of an embedding, but got "
            f"{emb_name!r}. The model has {_candidates(model, weights)}. Give part of one of these names, a glob, or "
            "None for the input embedding."
        )
    return matches


def scales(module: nn.Module) -> bool:
    """Return whether a lookup may scale its rows by ``embed_scale``, as BART's and Gemma's in transformers do."""
    table = lookup_of(module)
    # PEFT's layer scales as its embedding does from PEFT 0.18 on; before, it looks rows up as they stand.
    return type(table).forward is not nn.Embedding.forward and (table is module or hasattr(module, "_get_embed_scale"))


def lookup_of(module: nn.Module) -> nn.Embedding:
    """
    Return the embedding that a module looks up: itself, or the one whose place PEFT's layer for
    ``trainable_token_indices`` takes. That layer looks up a copy of the table with the trained rows in it, scaled as
    the embedding would, and does not call the embedding.
    """
    return module.base_layer if _has_own_rows(module) else module  # type: ignore[return-value]


def _has_own_rows(module: nn.Module) -> bool:
    covers = type(module).__name__ == "TrainableTokensLayer"
    return covers and isinstance(getattr(module, "base_layer", None), nn.Embedding)


def _asked(model: nn.Module, embeddings: list[nn.Embedding]) -> list[nn.Module]:
    """Return the modules that a forward calls for these embeddings."""
    covers = [m for m in model.modules() if _has_own_rows(m) and any(lookup_of(m) is e for e in embeddings)]
    return [e for e in embeddings if not any(lookup_of(m) is e for m in covers)] + covers


def _looks_up(module: nn.Module) -> bool:
    return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")


def _lookup_modules(model: nn.Module) -> list[nn.Embedding]:
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def fits(name: str, emb_name: str) -> bool:
    """Return whether ``emb_name`` is part of a name, or a glob that matches all of it."""
    return fnmatch.fnmatchcase(name, emb_name) if any(c in emb_name for c in "*?[") else emb_name in name


def _input_embeddings(model: nn.Module, weights: dict[str, Tensor]) -> list[nn.Embedding]:
    own = {id(param) for param in weights.values()}
    named = [each for each in _named_by(model, own) if any(param.requires_grad for param in each[0].parameters())]
    found = [embedding for _, embedding in named or _named_by(model, own)]
    if found:
        return found
    embeddings = _lookup_modules(model)
    if not embeddings:
        raise ValueError(
            f"Expected the model to have an nn.Embedding, but got {type(model).__name__} without one. "
            "Give `emb_name`, part of the name of the parameter to perturb; the model has "
            f"{_candidates(model, weights)}."
        )
    names = {id(module): name for name, module in model.named_modules()}
    words = [e for e in embeddings if not any(map(_POSITIONS.fullmatch, _WORD.findall(names[id(e)])))] or embeddings
    largest = max(words, key=lambda embedding: embedding.num_embeddings)
    alike = re.sub(r"\d+", "#", names[id(largest)])
    return [e for e in words if e.weight.shape == largest.weight.shape and re.sub(r"\d+", "#", names[id(e)]) == alike]


def _named_by(module: nn.Module, own: set[int]) -> list[tuple[nn.Module, nn.Embedding]]:
    """Return the outermost modules that name an input embedding of the model, each with it."""
    told = [e for e in _lookup_modules(_told_by(module)) if id(e.weight) in own or _is_computed(e)]
    if told:  # PEFT's `modules_to_save` keeps the original beside the copy that is trained
        return [(module, max(told, key=lambda e: (e.num_embeddings, e.weight.requires_grad)))]
    return [each for child in module.children() for each in _named_by(child, own)]


def _is_computed(module: nn.Module) -> bool:
    """Return whether an embedding has no weight of its own, but computes it (``weight_norm``, parametrizations)."""
    return isinstance(module, nn.Embedding) and (is_parametrized(module, "weight") or hasattr(module, "weight_g"))


def _told_by(module: nn.Module) -> nn.Module:
    """Return the input embedding that a model of transformers names; an empty module if it names none."""
    try:
        told = module.get_input_embeddings()  # type: ignore[operator]
    except Exception:  # a base class may only declare the method, and one of the user's own may be about anything
        told = None
    return told if isinstance(told, nn.Module) else nn.Module()


def _checked(embedding: Embedding) -> Embedding:
    for module in map(lookup_of, embedding.modules):
        if getattr(module, "max_norm", None) is not None:
            raise ValueError(
                f"Expected embedding {embedding.describe()} to have no `max_norm`, but got {module.max_norm}, which "
                "rewrites the rows at every lookup and would undo the perturbation. Build it with `max_norm=None`."
            )
    return embedding


def _candidates(model: nn.Module, weights: dict[str, Tensor]) -> str:
    modules: dict[int, nn.Module] = {id(module.weight): module for module in _lookup_modules(model)}
    found = [Embedding(n, w, [modules[id(w)]] if id(w) in modules else []) for n, w in weights.items()]
    embeddings = [e for e in found if e.modules]
    if embeddings:
        return "the embeddings " + ", ".join(e.describe() for e in embeddings)
    return "no nn.Embedding; its parameters are " + ", ".join(e.describe() for e in found[:10])
