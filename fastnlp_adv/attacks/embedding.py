"""Attacks on the lookups of embeddings by steps of steepest ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ..functional import NORMS, ascend, project, random_in_ball
from ..method import OnEmbeddings
from ..options import check_flag, check_fraction, check_mask, one_of, option, options
from ..taps import EmbeddingTap, Granularity, Mask, Tap, fits, taps_on
from .base import Attack
from .passes import AdversarialLoss, TwoPasses, run_closure

Norm = Literal["l2", "linf"]


@options
class _InRows(OnEmbeddings):
    relative: bool = option(
        default=False,
        check=check_flag,
        doc="give lengths in rows, the mean length of the embedding's rows, rather than in the units of the embedding. "
        "It is measured when the attack is attached, for each embedding separately, and kept in checkpoints",
    )
    mask: Mask = option(
        default=None,
        check=check_mask,
        doc="the positions to perturb: the key of a batch field, or a function of the batch; either gives a bool "
        "or 0-1 tensor of the shape of the ids. Padding (``padding_idx``) is never perturbed. With ``None`` and an "
        "embedding without ``padding_idx``, perturbations of positions follow the ``attention_mask`` of the batch, or "
        "of the model's inputs. A perturbation of a token type always applies to all its positions: there the mask "
        "selects the gradients that count",
    )


class EmbeddingAttack(_InRows, Attack):
    """An attack on the lookups of embeddings by steps of steepest ascent."""

    #: True if outputs of lookups are perturbed, also where these are not rows of an embedding
    needs_only_outputs: ClassVar[bool] = False
    # Attributes of attacks without the argument.
    epsilon: float = 0.0
    granularity: str = "sequence"
    norm: str = "l2"

    fixed = Attack.fixed | {"relative", "mask"}

    def find_taps(self, model: nn.Module) -> list[Tap]:
        taps = taps_on(model, self.emb_name, self.granularity, self.mask, outputs=self.needs_only_outputs)
        self._check_fraction(taps)
        for tap in taps if self.relative else ():
            tap.unit = _row_of(tap)
        return taps

    def validate(self) -> None:
        super().validate()
        self._check_fraction(vars(self).get("taps", ()))

    def _check_fraction(self, taps: Iterable[Tap]) -> None:
        others = [f"`{tap.name}`" for tap in taps if not isinstance(tap, EmbeddingTap)]
        if self.fraction < 1 and others:
            raise ValueError(
                "Expected `fraction` to be 1 for parameters that are not looked up, which all examples share, but got "
                f"{self.fraction} with {', '.join(others)}. Choose an `emb_name` that matches embeddings only, or "
                "`fraction=1`."
            )

    def describe(self) -> str:
        if not self.taps:
            return f"{type(self).__name__}: epsilon {self.epsilon:g}{' rows' * self.relative}, unattached"
        some = "" if self.fraction == 1 else f", in {self.fraction:.3g} of the examples"
        shared = {"vocab": "shared by the micro-batch", "sequence": "per example", "token": "per token"}
        whose = " in each coordinate" if self.norm == "linf" else f", {shared[self.granularity]}"
        return f"{super().describe()}: {self.in_both_units('epsilon', self.epsilon)}{whose}{some}"

    def size_warning(self) -> str:
        """Return a warning of perturbations so large that models often fail to learn; empty where they are not."""
        if self.warmup:
            return ""
        most = 2 if self.granularity == "vocab" else 1
        for tap in self.embedding_taps if self.norm == "l2" else ():
            row = 1.0 if self.relative else (tap.embedding.row_length() or math.inf) / tap.unit
            if self.epsilon > most * row:
                smaller = "a smaller `epsilon`" if self.relative else "it in rows, as `relative=True, epsilon=0.5`"
                return (
                    f"Expected `epsilon` to be at most {most} row{'s' * (most > 1)} of `{tap.name}`, but got "
                    f"{self.epsilon / row:.3g}: often a model does not learn under so large a perturbation. Give "
                    f"{smaller}, or let it grow as the loss falls (`warmup='auto'`) or with time (`warmup=1.0`)."
                )
        return ""

    def in_both_units(self, name: str, length: float) -> str:
        """Return a length as given, and in the units of the embedding or in rows."""
        said = f"{name} {length:g}" + " rows" * self.relative
        if len(self.taps) > 1 or not self.embedding_taps:
            return said + " of each" * self.relative
        (tap,) = self.embedding_taps
        if self.relative:
            return f"{said} = {length * tap.unit:.2g}"
        row = tap.embedding.row_length()
        # how far a coordinate moves is no part of a row
        return f"{said} = {length / row:.2g} rows" if row and self.norm != "linf" else said

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if not self.is_unattached and self.relative:
            state["units"] = {tap.name: tap.unit for tap in self.taps}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if not self.is_unattached and self.relative:  # the rows have changed since then, and the unit is to stay
            for tap in self.taps:
                tap.unit = state.get("units", {}).get(tap.name, tap.unit)

    def ascend(self, step: float, *, radius: float | None = None, taps: list[Tap] | None = None) -> None:
        """Move the perturbations at the taps (all if ``None``) by lengths as given, and project back to the ball."""
        moved = []
        for tap in self.taps if taps is None else taps:
            deltas, values = tap.deltas(), []
            size = tap.unit * self.current.strength
            for delta in deltas:
                delta.value = ascend(delta.value, delta.grad, step * size, dims=delta.dims, norm=self.norm)
                if radius is not None:
                    delta.value = project(delta.value, radius * size, dims=delta.dims, norm=self.norm)
                values.append(delta.value)
            tap.perturb(values)
            moved.append(deltas)
        self.record(moved)

    def randomize(self, radius: float) -> None:
        """Start every perturbation at a random point of its ball; ``radius`` in the units of the argument."""
        for tap in self.taps:
            size, values = radius * tap.unit * self.current.strength, []
            for delta in tap.deltas():
                how: dict[str, Any] = {"free": delta.free, "generator": self.stream.on(delta.value.device)}
                values.append(random_in_ball(delta.value, size, dims=delta.dims, norm=self.norm, **how))
            tap.perturb(values)

    def record_start(self) -> None:
        """Note the norms of a pass at where the perturbations started, for a step without an ascent step."""
        self.record([tap.deltas() for tap in self.taps])

    def inner_passes(self, closure: Callable[[], Tensor]) -> None:
        """Run, in a plain loop, all passes between the clean one and the adversarial one."""
        for each in self.passes():
            if each.last:
                return
            if not each.trains:
                self.gradient_of(closure)

    def gradient_of(self, closure: Callable[[], Tensor]) -> None:
        """Run the model and differentiate its loss with respect to the embeddings only."""
        for tap in self.taps:
            tap.begin_pass(inner=True)
        with self.inner_forward(self.inner_autocast):
            loss = run_closure(closure)
        self.differentiate(loss)

    def restore(self, emb_name: str | None = None) -> None:
        """
        Take the perturbation off.

        :param emb_name: only at the embeddings of this name.
        """
        for tap in self._chosen(emb_name):
            tap.reset()

    def _until_restored(
        self, perturb: Callable[[], None], *, loss: Tensor | None, accumulation_steps: int, total_steps: float | None
    ) -> AbstractContextManager[Any]:
        if self.fraction < 1:
            raise ValueError(
                f"Expected `fraction` to be 1 for `attack`, which does not know the batch, but got {self.fraction}. "
                "Use `step(closure, batch)`, whose closure receives the batch of the pass, or `fraction=1`."
            )
        if self.start or self.every > 1:
            raise ValueError(
                "Expected `start` to be 0 and `every` to be 1 for `attack`, which cannot skip a step, but got "
                f"{self.start} and {self.every}. Use `step(closure)`, which can."
            )
        self.progress.begin_batch(accumulation_steps, total_steps)
        self._begin_step()
        self.current.loss = None if loss is None else loss.detach()
        with ExitStack() as stack:
            stack.callback(self.restore)  # at once, if perturbing fails halfway
            perturb()
            self._count_batch()
            self._log()
            return stack.pop_all()

    def _chosen(self, emb_name: str | None) -> list[Tap]:
        _ = self.attached
        taps = [tap for tap in self.taps if emb_name is None or fits(tap.name, emb_name)]
        if not taps:
            raise ValueError(
                f"Expected `emb_name` to name an embedding that this attack watches, but got {emb_name!r}. It watches "
                f"{', '.join(f'`{tap.name}`' for tap in self.taps)}; give `emb_name` when the attack is built."
            )
        return taps


@options
class TwoPassAttack(TwoPasses, AdversarialLoss, EmbeddingAttack):
    """An attack with a clean and an adversarial pass; ``replace`` makes the clean one an inner one."""

    granularity: Granularity = option(
        default="vocab",
        check=one_of("vocab", "sequence", "token"),
        doc='``"vocab"``, one perturbation per token type, normalized over the micro-batch (the same as perturbing the '
        'weights); ``"sequence"``, one per position, normalized over each example; '
        '``"token"``, one per position, normalized separately',
    )
    norm: Norm = option(
        default="l2",
        check=one_of(*NORMS),
        doc='``"l2"``, for steps along :math:`g/\\lVert g\\rVert_2`, or ``"linf"``, along :math:`\\mathrm{sign}(g)`',
    )
    fraction: float = option(
        default=1.0,
        check=check_fraction,
        doc="the fraction of a batch's examples to attack, drawn at random in each step, at least one; the "
        "passes that attack run on those only. With ``replace``, the others are trained on the clean input",
    )


def _row_of(tap: Tap) -> float:
    if not isinstance(tap, EmbeddingTap):
        raise ValueError(
            f"Expected `relative` to be False, since `{tap.name}` is not looked up and has no rows, but got True. "
            "Give an `emb_name` that matches embeddings only."
        )
    row = tap.embedding.row_length()
    if row is None:
        raise ValueError(
            f"Expected `relative` to be False, since `{tap.name}` is sharded and no process has all rows, but got "
            "True. Give `epsilon` in the units of the embedding."
        )
    if not 0 < row < math.inf:
        raise ValueError(
            f"Expected `relative` to be False, since the rows of `{tap.name}` are {row:g} long on average, but got "
            "True. Build the attack when the embedding has its weights."
        )
    return row
