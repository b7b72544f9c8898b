"""Arguments that several methods have, and that mean the same in all of them.

A method declares them one by one, in its own order::

    emb_name: Optional[str] = shared.emb_name(". Embeddings only")
    norm: shared.Norm = shared.norm(default="linf")
"""

from __future__ import annotations

from typing import Any, Callable, Literal, Optional, Union, cast, get_args

import torch

from .checks import Check, check_fraction, check_name, must_be, one_of
from .declare import Arguments, Cost, argument

__all__ = [
    "Divergence",
    "DropoutMask",
    "Mask",
    "Norm",
    "Reduction",
    "TwoPassArguments",
    "adv_weight",
    "divergence",
    "dropout_mask",
    "emb_name",
    "fraction",
    "granularity",
    "inner_autocast",
    "mask",
    "norm",
    "reduction",
    "relative",
    "replace",
    "warmup",
]

DropoutMask = Literal["new", "same"]
Norm = Literal["l2", "linf"]
Reduction = Literal["batchmean", "sum", "mean"]
_Divergence = Literal["categorical", "bernoulli", "mse"]
#: also a function of two predictions
Divergence = Union[_Divergence, Callable[..., Any]]
#: also a batch key or a function of batch and outputs
Mask = Optional[Union[str, Callable[..., Any]]]


def _shared(default: Any, description: str, check: Check | None = None) -> Callable[..., Any]:
    def declare(more: str = "", default: Any = default) -> Any:
        """
        Declare an argument of a method.

        :param more: what the method has to say besides.
        :param default: its default.
        """
        return argument(default, description + more, check)

    return declare


def _check_inner_autocast(name: str, value: Any) -> None:
    if value is not None and value is not torch.bfloat16:
        raise ValueError(
            f"Expected `{name}` to be None or torch.bfloat16, but got {value!r}. bfloat16 has the range of float32; in "
            "float16 small gradients would be 0."
        )


def _check_divergence(name: str, value: Any) -> None:
    if not callable(value):
        one_of(get_args(_Divergence))(name, value)


emb_name = _shared(
    None,
    "part of a parameter's name, a glob, or ``None`` for the input embedding; see "
    ":func:`~fastnlp_adv.taps.find_embeddings`",
    check_name,
)

granularity = _shared(
    "vocab",
    '``"vocab"``, one perturbation per token type, normalized over the micro-batch (the same as perturbing the '
    'weights); ``"sequence"``, one per position, normalized over each example (the first dimension of the ids); '
    '``"token"``, one per position, normalized by itself',
)

norm = _shared(
    "l2", '``"l2"``, for steps along :math:`g/\\lVert g\\rVert_2`, or ``"linf"``, along :math:`\\mathrm{sign}(g)`'
)

adv_weight = _shared(1.0, "the weight of the adversarial loss; in a plain loop with ``attack`` you apply it yourself")

warmup = _shared(
    0,
    "optimizer steps, from ``start`` on, over which what is perturbed by (``epsilon`` and ``alpha``, ``gamma`` or "
    "``rho``) grows linearly from 0 to its value, or, up to 1, a fraction of the training; 0 for the whole "
    "perturbation from the first step",
)

replace = _shared(False, "train on the adversarial loss alone; the first pass then computes no parameter gradients")

fraction = _shared(
    1.0,
    "which fraction of a batch's examples is attacked, at least one, drawn anew in each step; the passes that "
    "attack run on those alone",
    check_fraction,
)


def relative(lengths: str = "``epsilon``") -> Any:
    """
    Declare ``relative: bool``.

    :param lengths: the arguments that are lengths.
    """
    described = (
        f"give {lengths} in rows, the mean length of the embedding's rows, rather than in the units of the embedding. "
        "It is measured when the attack is built, for each embedding by itself, and kept in checkpoints"
    )
    return argument(False, described)


dropout_mask = _shared(
    "new", '``"new"``: each pass draws its own dropout mask; ``"same"``: all passes of a step share one'
)

inner_autocast = _shared(
    None,
    "``torch.bfloat16`` runs the model in this precision, under autocast, in the passes that do not train, of "
    "which only the direction of a gradient is used; ``None`` for the precision of the other passes. An autocast "
    "that the model or the Trainer (``fp16=True``) enters itself goes first",
    _check_inner_autocast,
)

divergence = _shared(
    "categorical",
    '``"categorical"`` for logits over classes, ``"bernoulli"`` for independent logits (multi-label), ``"mse"`` '
    "for regression, or a callable of both predictions (see :func:`fastnlp_adv.divergences.divergence`)",
    _check_divergence,
)

reduction = _shared(
    "batchmean",
    '``"batchmean"`` divides the sum of the divergences by the number of examples, or of unmasked positions; '
    '``"sum"`` does not divide; ``"mean"`` divides by the number of elements, classes included',
)

mask = _shared(
    None,
    "which positions count: the key of a batch field, or a callable that takes the batch and the outputs (of one "
    "copy of the batch); either gives a bool or 0-1 tensor of shape ``pred.shape[:-1]``. With ``None``, "
    "predictions of three or more dimensions leave out the positions whose integer ``labels`` (or ``label``, "
    "``targets``, ``target``), of shape ``pred.shape[:-1]``, are -100. A causal language model that shifts its "
    "labels inside needs a callable that shifts too",
    must_be(
        "None, the key of a batch field or a callable",
        lambda value: value is None or isinstance(value, str) or callable(value),
    ),
)


class TwoPassArguments(Arguments):
    """Share what attacks with a clean and an adversarial pass have; ``replace`` makes the clean one an inner one."""

    # Declared by each attack, in the order of its own. Without annotations, which would make arguments of them.
    replace = cast(Any, False)
    fraction = cast(Any, 1)
    dropout_mask = cast(Any, "new")
    inner_autocast = cast(Any, None)

    @property
    def cost(self) -> Cost:
        """The passes of a step."""
        return Cost(2, 2 - self.replace, int(self.replace))

    def check_together(self) -> None:
        """Refuse a precision for inner passes where a step has none, and one mask for passes over other examples."""
        super().check_together()
        if self.fraction < 1 and self.dropout_mask != "new":
            raise ValueError(
                f"Expected `dropout_mask` to be 'new' with a `fraction` below 1, but got {self.dropout_mask!r}: a part "
                "of the batch and the whole have masks of different shapes. Leave it out, or use `fraction=1`."
            )
        if self.inner_autocast is not None and not self.cost.inner:
            raise ValueError(
                "Expected `inner_autocast` to be None where every pass of a step trains, but got "
                f"{self.inner_autocast!r}. Leave it out, or use `replace=True`, or PGD with more `steps`."
            )
