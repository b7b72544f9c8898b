"""The loss and accuracy of a model under the worst perturbations that an attack finds, without a Trainer."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..regularizers.outputs import IGNORED, LABELS, read_outputs
from .worst_case import Scores, WorstCase, on_tensors

#: takes the outputs and the batch, returns a loss for each example
Loss = Callable[[Any, Any], Tensor]


class RobustResults(dict[float, dict[str, float]]):
    """
    Loss and accuracy by epsilon, 0 for the clean input: a dict, which is printed as a table.

    :param found: the results.
    :param relative: whether epsilon is in rows, rather than in the units of the embedding.

    Example::

        >>> print(RobustResults({0.0: {"loss": 0.5, "accuracy": 0.8}, 0.1: {"loss": 1.25, "accuracy": 0.55}}))
        Under the worst perturbations found, by epsilon in rows (mean lengths of a word vector)
           epsilon      loss  accuracy
                 0       0.5     80.0%
               0.1      1.25     55.0%
    """

    def __init__(self, found: Mapping[float, dict[str, float]], relative: bool = True):
        super().__init__(found)
        self.relative = relative

    def __str__(self) -> str:
        names = list(next(iter(self.values()), {}))
        unit = "in rows (mean lengths of a word vector)" if self.relative else "in the units of the embedding"
        rows = [["epsilon", *names]]
        for epsilon, each in self.items():
            shown = [f"{value:.1%}" if name == "accuracy" else f"{value:.4g}" for name, value in each.items()]
            rows.append([f"{epsilon:g}", *shown])
        lines = ["".join(f"{cell:>10}" for cell in row) for row in rows]
        return "\n".join([f"Under the worst perturbations found, by epsilon {unit}", *lines])


def robust_evaluate(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    epsilons: Sequence[float] = (0.1, 0.2, 0.4),
    relative: bool = True,
    steps: int = 20,
    restarts: int = 3,
    alpha: float | None = None,
    emb_name: str | None = None,
    step: Callable[[Any], Any] | None = None,
    labels: str | None = None,
    loss: Loss | None = None,
    update: Callable[[float, Any, Any], None] | None = None,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> RobustResults:
    """
    Loss and accuracy of a model under attack, see :class:`WorstCase`. The model is in eval mode
    during the evaluation only.

    The clean input and all points of the ascent are candidates. The loss is the highest among them, so never below the
    clean one; a prediction counts as right if it is right at all points. A larger epsilon keeps the worst points of
    smaller ones, so the loss never falls and the accuracy never rises with epsilon.

    :param model: the model.
    :param dataloader: its batches are moved to the model's device.
    :param epsilons: the radii of the balls. A 6-layer BERT, fine-tuned on 1,000 texts without a method, was right in
        78 % of the clean ones, and in 45 %, 22 % and 0 % at the defaults.
    :param relative: in rows, the mean norm of the embedding's rows; else in the units of the embedding.
    :param steps: the number of ascent steps from each start.
    :param restarts: the number of random starts.
    :param alpha: the length of an ascent step, in the units of ``epsilons``; ``2.5 * epsilon / steps`` if ``None``.
    :param emb_name: part of the name of the embedding, a glob, or ``None`` for the input embedding.
    :param step: a function of the batch that runs the model. If ``None``, the model's ``train_step``, as fastNLP calls
        it (fields of the batch by the names of its parameters), or else ``model(**batch)``.
    :param labels: the field of the batch with the labels; ``labels``, ``label``, ``targets`` or ``target`` if ``None``.
        They are integers of shape ``(examples,)`` or ``(examples, positions)`` for logits of one more dimension, the
        classes; -100 does not count. The loss of an example is the mean over its labels.
    :param loss: a function of ``(outputs, batch)`` that returns a loss for each example; cross entropy if ``None``.
        No accuracy is reported then. A loss whose sign separates right from wrong, such as a margin, suits metrics in
        ``update``.
    :param update: called with ``(epsilon, outputs, batch)`` for the clean batch and at the worst points of each
        epsilon: more wrong predictions first, then the higher loss. For metrics of your own; gradients are off in it.
    :param seed: of the starts, which are the same for all epsilons and all calls.
    :param progress: wraps the dataloader, for instance ``tqdm.tqdm`` or ``rich.progress.track``.
    :return: for 0 (the clean input) and each epsilon, ``{"loss": ..., "accuracy": ...}``, averages over all examples
        and all labels, as a dict that is printed as a table.
    :raises ValueError: if an argument is out of range, or there are no logits, labels or batches.

    Example::

        >>> torch.manual_seed(0).initial_seed()
        0
        >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> data = [{"ids": torch.tensor([[1, 2, 3], [4, 5, 6]]), "labels": torch.tensor([0, 1])}]
        >>> found = robust_evaluate(model, data, epsilons=(0.1, 2.0), step=lambda batch: model(batch["ids"]))
        >>> list(found), found[2.0]["loss"] > found[0.1]["loss"] > found[0.0]["loss"], found[2.0]["accuracy"]
        ([0.0, 0.1, 2.0], True, 0.0)
    """
    attack = WorstCase(
        model, epsilons, relative=relative, steps=steps, restarts=restarts, alpha=alpha, emb_name=emb_name, seed=seed
    )
    run = _step_of(model) if step is None else step

    def scores(batch: Any) -> Scores:
        return score(run(batch), batch, labels, loss)

    device = next(model.parameters()).device
    sums: dict[float, Any] = defaultdict(int)
    with modes_kept(model), attack.running():
        model.eval()
        for each in dataloader if progress is None else progress(dataloader):
            batch = on_tensors(each, "to", device)
            for epsilon, worst in attack.search(partial(scores, batch)):
                sums[epsilon] += worst.totals()
                if update is not None:
                    with torch.no_grad():
                        update(epsilon, attack.at(worst, partial(run, batch)), batch)
    if not sums:
        raise ValueError("Expected `dataloader` to give batches, but got none. A generator can be read only once.")
    return RobustResults({epsilon: averages(*total.tolist()) for epsilon, total in sums.items()}, relative)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put every module back into the mode it was in, train or eval."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _step_of(model: nn.Module) -> Callable[[Any], Any]:
    """Return the step as fastNLP calls it, with the fields of the batch that it has parameters for."""
    run: Callable[..., Any] = getattr(model, "train_step", model)
    parameters = inspect.signature(run).parameters if run is not model else {}
    takes_all = run is model or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def step(batch: Any) -> Any:
        if len(parameters) == 1 and not (isinstance(batch, Mapping) and parameters.keys() & batch.keys()):
            return run(batch)
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"Expected the batch to be a dict for `model(**batch)`, but got {type(batch).__name__}. Give `step`, a "
                "function of the batch that runs the model."
            )
        return run(**(batch if takes_all else {name: batch[name] for name in parameters if name in batch}))

    return step


def score(outputs: Any, batch: Any, labels: str | None = None, loss: Loss | None = None) -> Scores:
    """Score a batch by the cross entropy of its logits, or by a loss of the user's; see :func:`robust_evaluate`."""
    if loss is not None:
        losses = loss(outputs, batch)
        if losses.dim() != 1:
            raise ValueError(
                f"Expected `loss` to return a value for each example, but got shape {tuple(losses.shape)}. Compute it "
                "with `reduction='none'` and average over everything but the examples."
            )
        unknown = torch.zeros_like(losses, dtype=torch.long)
        return Scores(losses.double(), unknown, unknown, losses)
    entries = {"pred": outputs} if isinstance(outputs, Tensor) else outputs
    logits = read_outputs(entries, needs_loss=False)["pred"]
    target = _labels(batch, labels, logits.device)
    if target.is_floating_point() or logits.shape[:-1] != target.shape:
        raise ValueError(
            "Expected logits of shape (examples, classes) or (examples, positions, classes) and integer labels of the "
            f"same shape without classes, but got {tuple(logits.shape)} and {tuple(target.shape)} of {target.dtype}. "
            "Give `loss`, a function of (outputs, batch) that returns a value for each example."
        )
    counted = (target != IGNORED).view(len(target), -1)
    wrong = (logits.argmax(-1) != target).view(counted.shape) & counted
    each = torch.where(counted, _cross_entropy(logits.double(), target).view(counted.shape), 0)
    losses = each.sum(1) / counted.sum(1).clamp(min=1)
    # the gradient of the logarithm has the same direction, and does not vanish where the prediction is confident
    return Scores(losses, wrong.sum(1), counted.sum(1), losses.log())


def averages(loss: float, examples: float, errors: float, labels: float) -> dict[str, float]:
    """Return the loss and, where labels are known, the accuracy from sums over examples."""
    return {"loss": loss / examples, **({"accuracy": 1 - errors / labels} if labels else {})}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy from the log-odds of the other classes, which keeps losses down to 1e-300."""
    own = target.clamp(min=0).long().unsqueeze(-1)
    others = logits.scatter(-1, own, float("-inf")).logsumexp(-1)
    return nn.functional.softplus(others - logits.gather(-1, own).squeeze(-1))


def _labels(batch: Any, name: str | None, device: torch.device) -> Tensor:
    fields = batch if isinstance(batch, Mapping) else {}
    for each in LABELS if name is None else (name,):
        if each in fields:
            return torch.as_tensor(fields[each], device=device)
    expected = f"the field that holds the labels, one of {LABELS}" if name is None else "a field of the batch"
    raise ValueError(
        f"Expected `labels` to name {expected}, but got {name!r} with {sorted(map(str, fields))}. Name the field that "
        "holds them, or give `loss`, a function of (outputs, batch) that returns a value for each example."
    )
