"""Sharded parameters, of which a process holds a piece: FullyShardedDataParallel's, ``fully_shard``'s, ZeRO-3's."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

__all__ = ["is_flat", "is_shard", "named_weights", "refuse_sharded", "refuse_shards"]


def is_flat(param: Tensor) -> bool:
    """
    Tell whether a parameter is FullyShardedDataParallel's, into which it has put those of a module.

    :param param: the parameter.
    """
    return getattr(param, "_is_flat_param", False)


def is_shard(weight: Tensor) -> bool:
    """
    Tell whether this process may hold a piece of a weight only.

    :param weight: a parameter, or what FullyShardedDataParallel leaves in its place with ``use_orig_params=False``.
    """
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
    are those that the modules look up.

    :param model: the model.
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
    """
    Refuse sharded parameters.

    :param named: the parameters, by name.
    :param what: what needs them whole.
    :raises ValueError: if one is a shard.
    """
    for name, param in named:
        if is_shard(param):
            raise _refusal(f"`{_plain_name(name)}`", what)


def refuse_sharded(model: nn.Module, what: str) -> None:
    """
    Refuse a model with sharded parameters, also while they are gathered.

    :param model: the model.
    :param what: what needs its parameters whole.
    :raises ValueError: if one is a shard, or will be.
    """
    refuse_shards(model.named_parameters(), what)
    for name, module in model.named_modules():
        if any(each.__name__ == "FSDPModule" for each in type(module).__mro__):  # what `fully_shard` makes of a module
            raise _refusal(f"`{name or type(module).__name__}`", what)


def _refusal(found: str, what: str) -> ValueError:
    return ValueError(
        f"Expected {what} to find every parameter whole in each process, but got {found}, of which a process holds a "
        "shard. Train under DistributedDataParallel, or with a method that needs the lookups alone, as FGM, PGD, "
        "FreeLB and R3F do."
    )


def _plain_name(name: str) -> str:
    """Return the name that a parameter has in the model without FullyShardedDataParallel's wrappers."""
    return name.replace("_fsdp_wrapped_module.", "")
