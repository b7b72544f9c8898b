"""Sharded parameters, of which a process holds a piece: FullyShardedDataParallel's, ``fully_shard``'s, ZeRO-3's."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def is_flat(param: Tensor) -> bool:
    """Return whether FullyShardedDataParallel has made a parameter of all parameters of a module."""
    return getattr(param, "_is_flat_param", False)


def is_shard(weight: Tensor) -> bool:
    """Return whether this process may hold only a shard; with ``use_orig_params=False`` a weight is no parameter."""
    return (
        not isinstance(weight, nn.Parameter)
        or is_flat(weight)
        or getattr(weight, "_fsdp_flattened", False)
        or hasattr(weight, "device_mesh")  # a DTensor
        or hasattr(weight, "ds_id")  # ZeRO's third stage
    )


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """
    Return a model's parameters by the names that they have in the model without wrappers. Where
    FullyShardedDataParallel has put them into a flat parameter (``use_orig_params=False``), the weights of embeddings
    are taken from the modules.
    """
    named = list(model.named_parameters())
    found: dict[str, Tensor] = {_plain_name(name): param for name, param in named if not is_flat(param)}
    if len(found) < len(named):
        known = {id(param) for param in found.values()}
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding) and id(module.weight) not in known:
                found[_plain_name(f"{name}.weight")] = module.weight
                known.add(id(module.weight))
    return found


def refuse_shards(named: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise ``ValueError`` if one of the parameters is a shard, which ``what`` needs whole."""
    for name, param in named:
        if is_shard(param):
            raise _refusal(f"`{_plain_name(name)}`", what)


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Raise ``ValueError`` if a parameter is a shard, or will be: they may be gathered at the moment."""
    refuse_shards(model.named_parameters(), what)
    for name, module in model.named_modules():
        if any(each.__name__ == "FSDPModule" for each in type(module).__mro__):  # a module after `fully_shard`
            raise _refusal(f"`{name or type(module).__name__}`", what)


def _refusal(found: str, what: str) -> ValueError:
    return ValueError(
        f"Expected {what} to find every parameter whole in each process, but got {found}, of which a process holds a "
        "shard. Train under DistributedDataParallel, or with a method that needs only the lookups, as FGM, PGD, "
        "FreeLB and R3F do."
    )


def _plain_name(name: str) -> str:
    """Return the name that a parameter has in the model without FullyShardedDataParallel's wrappers."""
    return name.replace("_fsdp_wrapped_module.", "")
