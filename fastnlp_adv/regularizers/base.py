"""The base of regularizers: they wrap an objective and add a term to its loss."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .. import divergences, forwards
from ..method import Method
from ..options import check_mask, must_be, one_of, option, options
from .outputs import Mask, find_masks, labels_in, read_loss, read_outputs, shifts_labels, tensors_of

#: takes a batch, returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or ``logits``)
Forward = Callable[[Any], Any]


class Regularizer(Method, ABC):
    """
    An extra term of the loss. Calling it runs the model and returns the outputs with that term in ``loss``.

    Regularizers are nested: the ``objective`` of each is the next inner one; ``forward``, the bare training step, is
    for its extra passes. One that changes the clean pass itself, as R-Drop does, is innermost.
    """

    #: the key of the term in the outputs
    name: ClassVar[str]
    #: whether it is nested inside the others
    innermost: ClassVar[bool] = False
    #: whether the objective must return a loss
    needs_loss: ClassVar[bool] = True

    def _forget(self) -> None:
        super()._forget()
        #: the last batch counted, and whether the method acts on it
        self._counted: object = None
        self._acts = True

    def __call__(
        self,
        objective: Forward,
        batch: Any,
        forward: Forward | None = None,
        *,
        accumulation_steps: int = 1,
        total_steps: float | None = None,
    ) -> dict[str, Any]:
        """
        Run the model and add the term; only run the model where ``start`` or ``every`` leaves the method out.

        :param objective: takes a batch and returns a dict, dataclass or ``ModelOutput`` with ``loss`` and ``pred`` (or
            ``logits``), floating-point logits or values of shape ``(examples, ...)``; with the terms of other
            regularizers that it contains. Of several predictions, a tuple or dict in ``pred`` or ``start_logits`` and
            ``end_logits``, the divergences are added.
        :param batch: the argument of both functions. Each call gets its own shallow copy of a mapping.
        :param forward: the bare training step, for extra passes; ``objective`` if ``None``. A model with R-Drop of its
            own runs once in it.
        :param accumulation_steps: how many batches make an optimizer step, for ``start`` and ``every``.
        :param total_steps: the optimizer steps of the training, for ``start`` as a fraction of it.
        :return: the outputs as a dict, with the term in ``loss`` and, unweighted and detached, under the name of the
            method, unless the model itself returns something of this name.
        :raises ValueError: if the outputs have no loss, or no prediction that the method can use.
        """
        if not callable(objective):
            raise TypeError(
                f"Expected `objective` to be a function of the batch, but got {type(objective).__name__}. Give the "
                "training step first, then the batch."
            )
        current = forwards.scope.batch or forwards.Batch(batch)
        with forwards.scoped(batch=current):
            is_new = current is not self._counted  # an attack runs several passes over a batch
            if is_new:
                self.progress.begin_batch(accumulation_steps, total_steps)
                self._counted, self._acts = current, self.is_due(self.progress)
            if self._acts:
                outputs = self.regularize(objective, batch, forward)
                self.describe_once()
            else:
                returned = forwards.run(objective, batch, bare=True)
                outputs = read_loss(returned) if self.needs_loss else read_outputs(returned, needs_loss=False)
            self.progress.batches += is_new
            return outputs

    @abstractmethod
    def regularize(self, objective: Forward, batch: Any, forward: Forward | None) -> dict[str, Any]:
        """Run the model and add the term."""

    def after_step(self) -> None:
        """Follow a step of the optimizer."""


def nesting(method: Method) -> tuple[bool, str]:
    """Order regularizers from the innermost to the outermost, so that the order in which they are given is free."""
    return (not method.innermost, method.name) if isinstance(method, Regularizer) else (False, "")


def regularized(
    train_step: Forward,
    regularizers: Iterable[Regularizer],
    no_sync: Callable[[], AbstractContextManager[Any]],
    stack: ExitStack,
) -> tuple[Forward, list[Regularizer], dict[str, Tensor]]:
    """
    Return the training step of one batch, wrapped by each regularizer that acts; these; and the terms of the loss, once
    the step has run. For trainers, which set ``progress``.

    :param regularizers: in the order of :func:`nesting`.
    :param no_sync: a context without gradient reduction, for all forwards of a pass but the last.
    :param stack: takes the hooks off at the end of the batch.
    """
    acting: list[Regularizer] = []
    bare = False
    for method in regularizers:
        if not (method.start or method.every > 1) or method.is_due(method.progress):
            acting.append(method)
        elif method.innermost:
            bare = True  # a model with R-Drop of its own runs once then

    def step(batch: Any) -> Any:
        forward = forwards.scope.forward
        with nullcontext() if forward is None or forward.last else no_sync():
            return train_step(batch)

    objective: Forward = functools.partial(forwards.run, step, bare=True) if bare else step
    terms: dict[str, Tensor] = {}
    for method in acting:
        objective = functools.partial(method.regularize, objective, forward=step)
        if method.taps:
            stack.enter_context(method.running())
    stack.enter_context(forwards.scoped(terms=terms))
    return objective, acting, terms


def add_term(outputs: dict[str, Any], name: str, weight: float, term: Tensor) -> dict[str, Any]:
    """Return the outputs with a weighted term in ``loss``, and under ``name`` unless the model itself uses it."""
    loss, unweighted = outputs.get("loss"), term.detach()
    loss = weight * term if loss is None else loss + weight * term
    if forwards.scope.terms is not None:  # of the first pass over a batch, which most often is the clean one
        forwards.scope.terms.setdefault(name, unweighted)
    return {name: unweighted, **outputs, "loss": loss}


@options
class Predictions(Regularizer):
    """Compares predictions."""

    #: whether both directions of a divergence are averaged or summed; ``None`` for one
    symmetric: ClassVar[str | None] = "mean"

    divergence: Literal["categorical", "bernoulli", "mse"] | Callable[..., Any] = option(
        default="categorical",
        check=must_be(
            "one of 'categorical', 'bernoulli', 'mse' or a function of both predictions",
            lambda value: callable(value) or value in divergences.DIVERGENCES,
        ),
        doc='``"categorical"`` for logits over classes, ``"bernoulli"`` for independent logits (multi-label), '
        '``"mse"`` for regression, or a callable of both predictions (see :func:`fastnlp_adv.divergences.divergence`)',
    )
    reduction: Literal["batchmean", "sum", "mean"] = option(
        default="batchmean",
        check=one_of("batchmean", "sum", "mean"),
        doc='``"batchmean"`` divides the sum of the divergences by the number of examples, or of unmasked positions; '
        '``"sum"`` does not divide; ``"mean"`` divides by the number of elements, classes included',
    )
    mask: Mask = option(
        default=None,
        check=check_mask,
        doc="the positions that count: the key of a batch field, or a callable that takes the batch and the outputs "
        "(of one copy of the batch); either gives a bool or 0-1 tensor of shape ``pred.shape[:-1]``, for several "
        "predictions a callable may give several. With ``None``, predictions of three or more dimensions leave out the "
        "positions whose integer ``labels`` (or ``label``, ``targets``, ``target``), of shape ``pred.shape[:-1]``, are "
        "-100; in a causal language model of transformers, the positions whose next label is -100. R-Drop "
        "recognizes one by its output, or if it is given the model. Decoders such as BART's do not shift; give a mask",
    )

    def _forget(self) -> None:
        super()._forget()
        #: whether the first batch has been checked
        self.has_looked = False
        #: whether the model is a causal language model
        self.shifts = False

    def make_memory(self, model: nn.Module) -> None:
        super().make_memory(model)
        self.shifts = shifts_labels(model)

    def masks(self, batch: Any, outputs: dict[str, Any], returned: Any) -> list[Tensor | None]:
        """Return the mask of each prediction; validate the first batch."""
        if not self.has_looked:  # reading values synchronizes, so only the first batch is validated
            self.has_looked = True
            if self.divergence == "categorical":
                _refuse_multi_label(batch, tensors_of(outputs["pred"]))
        return find_masks(self.mask, batch, outputs, shifts=self.shifts or "CausalLMOutput" in type(returned).__name__)

    def distance(self, pred: Any, other: Any, masks: list[Tensor | None], reduction: str | None = None) -> Tensor:
        """Return the divergence between two predictions, of several the sum; a squared error has one direction only."""
        symmetric = None if self.divergence == "mse" else self.symmetric
        how: dict[str, Any] = {"kind": self.divergence, "reduction": reduction or self.reduction}
        pairs = zip(tensors_of(pred), tensors_of(other), masks, strict=True)
        terms = [divergences.divergence(p, q, mask=mask, symmetric=symmetric, **how) for p, q, mask in pairs]
        return functools.reduce(torch.add, terms)


def _refuse_multi_label(batch: Any, preds: list[Tensor]) -> None:
    """Raise ``ValueError`` for labels of 0 and 1 per class, unless they are distributions over the classes."""
    for labels in labels_in(batch):
        fits = labels.is_floating_point() and labels.ndim > 1 and any(labels.shape == pred.shape for pred in preds)
        if fits and not bool(((labels >= 0).all(-1) & ((labels.sum(-1) - 1).abs() < 0.01)).all()):
            raise ValueError(
                f"Expected `divergence` to be 'bernoulli' for labels of shape {tuple(labels.shape)} that are no "
                "distributions over classes, but got 'categorical', which ignores a shift of all logits. "
                "Use divergence='bernoulli' for multi-label classification, 'mse' for a regression."
            )
