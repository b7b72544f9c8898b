"""R-Drop inside a model: ``class MyModel(RDropMixin, nn.Module)``."""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import forwards
from ..options import one_of
from .outputs import by_name, like, shifts_labels
from .rdrop import RDrop, warn_without_dropout

_SETTINGS = ("kl_weight", "reduction", "divergence", "mode", "mask")
_check_where = one_of("train_step", "forward")


class RDropMixin:
    """
    Gives a model a ``train_step`` that runs the user's own step twice and returns R-Drop's loss (see :class:`RDrop`).

    The user's class defines ``train_step``, inherits it, or has only a ``forward``; either returns ``loss`` and
    ``pred`` (or ``logits``). The signature stays, so fastNLP passes the same fields of the batch as before. Both
    forwards run inside one call of the model, as ``DistributedDataParallel`` requires.

    Some loops call ``model(...)`` and never ``train_step``: transformers' ``Trainer``, Accelerate, most hand-written
    loops, and fastNLP on a model that is already wrapped in ``DistributedDataParallel``. For them set ``rdrop_in =
    "forward"``: a call in training mode with gradients runs R-Drop once and returns the model's outputs (a dict,
    dataclass, ``ModelOutput``, or a tuple that begins with the loss) with the combined loss, and with ``kl`` if the
    type takes more keys. With ``"train_step"``, the default, such a call warns once if it returns a loss. Evaluation
    and direct calls of ``forward`` are unchanged, as is a model inside ``DataParallel``.

    Settings are class attributes, named after the arguments of :class:`RDrop` and read at every step; an instance may
    have its own. A callable written in the class body is a method like any other: ``def rdrop_mask(self, batch,
    outputs)``, where ``batch`` holds the arguments of ``train_step`` by name. A ``staticmethod`` takes no ``self``.

    :raises ValueError: when the class is made, if a setting is out of its range or misspelt.

    Example::

        >>> import torch
        >>> class Classifier(RDropMixin, nn.Module):
        ...     rdrop_kl_weight = 0.5
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
        ...     def train_step(self, x, labels):
        ...         pred = self.net(x)
        ...         return {"loss": nn.functional.cross_entropy(pred, labels), "pred": pred}
        >>> outputs = Classifier().train_step(x=torch.ones(3, 4), labels=torch.tensor([0, 1, 0]))
        >>> sorted(outputs)
        ['kl', 'loss', 'pred', 'pred2']
    """

    rdrop_in: Any = "train_step"
    rdrop_kl_weight: Any = 1.0
    rdrop_reduction: Any = "batchmean"
    rdrop_divergence: Any = "categorical"
    rdrop_mode: Any = "two_pass"
    rdrop_mask: Any = None

    #: whether the class has a ``train_step`` only because the mixin made one
    _rdrop_from_forward = False
    #: whether the first step has been checked, and a call that trained without R-Drop warned of
    _rdrop_checked = False
    _rdrop_warned = False
    #: whether the model is a causal language model, known from the first step on
    _rdrop_shifts = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_settings(cls)
        step = _users_step(cls)
        cls._rdrop_from_forward = step is None
        if getattr(cls, "forward", nn.Module.forward) is not nn.Module.forward:
            call = _step_from_forward(cls)
            cls._rdrop_call = _run_twice(call, keeps_type=True)  # type: ignore[attr-defined]
            step = step or call
        if step is not None:
            cls.train_step = _run_twice(step)  # type: ignore[attr-defined]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._rdrop_trains():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        _check_where("rdrop_in", self.rdrop_in)
        if self.rdrop_in == "forward":
            return self._rdrop_call(*args, **kwargs)  # type: ignore[attr-defined]
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        if not self._rdrop_warned and _has_loss(outputs):
            self._rdrop_warned = True
            name = type(self).__name__
            warnings.warn(
                f"{name} was called in training and returned a loss without R-Drop, which acts in `train_step`. Set "
                f'`rdrop_in = "forward"` in {name} if this loop calls the model, or call `train_step`.',
                stacklevel=2,
            )
        return outputs

    def _rdrop_trains(self) -> bool:
        """Tell whether a call is a training step, and not a forward inside one."""
        model: Any = self
        trains = model.training and torch.is_grad_enabled() and not hasattr(self, "_is_replica")
        return trains and not _is_bare() and forwards.scope.rdrop.get(id(self), self) is not None

    @contextmanager
    def rdrop_as(self, regularizer: RDrop | None) -> Iterator[None]:
        """
        Train with another regularizer instead of the model's own settings. The model is not checked for dropout.

        :param regularizer: used by ``train_step`` until the end of the ``with`` block; ``None`` for a plain
            ``train_step``.

        Example::

            >>> class Model(RDropMixin, nn.Linear):
            ...     def train_step(self, x):
            ...         return {"loss": self(x).mean(), "pred": self(x)}
            >>> import torch
            >>> model = Model(2, 2)
            >>> with model.rdrop_as(None):
            ...     sorted(model.train_step(torch.ones(1, 2)))
            ['loss', 'pred']
        """
        with forwards.scoped(rdrop={**forwards.scope.rdrop, id(self): regularizer}):
            yield

    def _rdrop(self) -> RDrop | None:
        if id(self) in forwards.scope.rdrop:
            replacement: RDrop | None = forwards.scope.rdrop[id(self)]
            return replacement
        regularizer = RDrop(**{name: getattr(self, f"rdrop_{name}") for name in _SETTINGS})
        regularizer.has_looked = self._rdrop_checked
        if not self._rdrop_checked:
            warn_without_dropout(self)  # type: ignore[arg-type]
            self._rdrop_shifts = shifts_labels(self)  # type: ignore[arg-type]
            self._rdrop_checked = True
        regularizer.shifts = self._rdrop_shifts
        return regularizer


def check_called(model: nn.Module, way_out: str) -> None:
    """Raise ``ValueError`` if R-Drop acts in the ``train_step`` of a model whose ``forward`` a Trainer calls."""
    if isinstance(model, RDropMixin) and model.rdrop_in != "forward":
        name = type(model).__name__
        raise ValueError(
            f"Expected `rdrop_in` of {name} to be 'forward', since the Trainer calls the model and not its "
            f'`train_step`, but got {model.rdrop_in!r}. Set `rdrop_in = "forward"` in {name}, or {way_out}.'
        )


def _is_bare() -> bool:
    """Tell whether the driver runs R-Drop, if any."""
    forward = forwards.scope.forward
    return forward is not None and forward.bare


def _run_twice(step: Callable[..., Any], *, keeps_type: bool = False) -> Callable[..., Any]:
    # functools.wraps leaves the user's signature for fastNLP to match the fields of the batch with.
    names = [p.name for p in inspect.signature(step).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(step)
    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Drivers of R-Drop announce bare forwards: RDropCallback, or the regularizer below, inside which the step of a
        # base class would run twice once more.
        regularizer = None if _is_bare() else self._rdrop()
        if regularizer is None:
            return step(self, *args, **kwargs)
        positional = [*names[: len(args)], *(f"args[{i}]" for i in range(len(names), len(args)))]
        is_whole = len(args) == 1 and not kwargs  # the whole batch in one argument
        returned = []

        def forward(batch: Any) -> Any:
            given = (batch,) if is_whole else [batch[name] for name in positional]
            outputs = step(self, *given, **{name: batch[name] for name in kwargs})
            returned.append(outputs)
            return by_name(outputs) if keeps_type else outputs

        batch = args[0] if is_whole else {**dict(zip(positional, args, strict=True)), **kwargs}
        outputs = regularizer(forward, batch)
        return like(returned[0], outputs) if keeps_type else outputs

    return train_step


def _has_loss(outputs: Any) -> bool:
    outputs = by_name(outputs)
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad


def _users_step(cls: type) -> Callable[..., Any] | None:
    """Return the ``train_step`` that ``cls`` would have without the mixin."""
    for base in cls.__mro__:
        if "train_step" in vars(base) and not vars(base).get("_rdrop_from_forward"):
            step: Callable[..., Any] = vars(base)["train_step"]
            return step
    return None


def _step_from_forward(cls: Any) -> Callable[..., Any]:
    @functools.wraps(cls.forward, assigned=("__module__", "__doc__"))
    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

    train_step.__qualname__ = f"{cls.__qualname__}.train_step"
    return train_step


def _check_settings(cls: type) -> None:
    """Validate the settings of a class; the values of properties are known at the first step only."""
    own = {name: value for name, value in vars(cls).items() if name.startswith("rdrop_") and name != "rdrop_as"}
    known = [f"rdrop_{name}" for name in _SETTINGS]
    for name, value in own.items():
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85) or [k for k in known if k.startswith(name)]
        if close and name not in known and not callable(value):  # other names are the user's own
            raise ValueError(f"Expected the settings of {cls.__name__} to be among {known}, but got `{name}`.")
    if not isinstance(cls.rdrop_in, property):  # type: ignore[attr-defined]
        _check_where("rdrop_in", cls.rdrop_in)  # type: ignore[attr-defined]
    values = {name: getattr(cls, f"rdrop_{name}") for name in _SETTINGS}
    RDrop(**{name: value for name, value in values.items() if not isinstance(value, property)})
