"""Whether a model drops anything: without dropout R-Drop compares a prediction with itself."""

from __future__ import annotations

import re
import warnings

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["has_dropout", "warn_without_dropout"]


def has_dropout(model: nn.Module) -> bool:
    """
    Tell whether two forwards of ``model`` in training mode can differ by dropout.

    Looks at each module for ``torch.nn``'s dropouts (subclasses too), recurrent layers that drop between layers, and
    numbers above 0 in attributes named after dropout, as attention modules and stochastic depth have them
    (``attention_dropout``, ``drop_prob``, ``layerdrop``). Dropout that a ``forward`` takes from elsewhere is not seen.

    :param model: any module.
    :return: ``True`` if any probability of dropping is above 0.

    Example::

        >>> has_dropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
        True
        >>> has_dropout(nn.LSTM(2, 2, num_layers=1, dropout=0.0))
        False
    """
    return any(_drops(module) for module in model.modules())


def warn_without_dropout(model: nn.Module) -> None:
    """
    Warn that R-Drop does nothing for ``model``, if that is so.

    :param model: the model to be trained.
    """
    if not has_dropout(model):
        warnings.warn(
            f"R-Drop found no dropout above 0 in {type(model).__name__}: both predictions are the same and their "
            "divergence is 0. Give the model dropout, or train it without R-Drop.",
            stacklevel=2,
        )


def _drops(module: nn.Module) -> bool:
    attributes = vars(module)
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:  # it drops between its layers only
        attributes = {name: value for name, value in attributes.items() if name != "dropout"}
    named = "drop" in type(module).__name__.lower()
    return any(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        for name, value in attributes.items()
        if "drop" in re.sub("^rdrop_", "", name.lower()) or (named and name == "p")
    )
