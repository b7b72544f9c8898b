"""Training methods: they act in some steps, and log the size of their perturbations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from torch import distributed as dist
from torch import nn
from typing_extensions import Self

from .model_method import ModelMethod
from .options import Options, check_name, one_of, option, options
from .random_state import same_dropout
from .schedule import Growing, Progress, Scheduled

DropoutMask = Literal["new", "same"]
#: the log of plain loops
logger = logging.getLogger("fastnlp_adv")


class Cost(NamedTuple):
    """
    The passes of a step, where plain training has ``Cost(1, 1, 0)``.

    :param forwards: the number of forwards.
    :param backwards: the number of backward passes to the parameters.
    :param inner: the number of backward passes that train nothing: they end at the embeddings, at about half the
        price, or, in SAM and in AWP with ``replace``, at the weights.
    """

    forwards: int
    backwards: int
    inner: int


def is_first_process() -> bool:
    """Tell whether this process is the one that logs."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def say(line: str, *warnings: str) -> None:
    """Log a line and warnings, those that are not empty, on the first process."""
    if line and is_first_process():
        logger.info(line)
    for warning in warnings:
        if warning and is_first_process():
            logger.warning(warning)


@options
class Method(Scheduled, ModelMethod):
    """
    A method that trains a model.

    :param model: the model; ``None`` to attach later.
    """

    #: the address of the paper
    paper: ClassVar[str]

    def _forget(self) -> None:
        super()._forget()
        #: where the training stands
        self.progress = Progress()
        #: the line of :meth:`describe`, and a warning, until they are logged
        self.opening = "", ""

    @property
    def cost(self) -> Cost:
        """The passes of a step in which the method acts."""
        raise NotImplementedError

    def size_warning(self) -> str:
        """Return a warning of perturbations so large that models often fail to learn; empty where they are not."""
        return ""

    def attach(self, model: nn.Module) -> Self:
        super().attach(model)
        # now, since it reads the weights: a step must not wait for the device
        self.opening = self.describe(), self.size_warning()
        return self

    def introduce(self, name: str) -> tuple[str, ...]:
        """
        Return the line to log when a trainer begins, empty where nothing is perturbed, and warnings: of perturbations
        that are large, and of a training that is too short for the schedule.
        """
        steps, first = int(self.progress.total_steps or 0), self.first_step(self.progress)
        warmup = self.warmup if isinstance(self, Growing) else 0
        growing = self.growing_steps(self.progress) if isinstance(self, Growing) else 0.0
        (line, *warnings), self.opening = self.opening, ("", "")
        if 0 < steps <= first:
            warnings.append(
                f"Expected `start` to be within the training of {steps} optimizer steps, but got {self.start}: "
                f"{name} will never act. Give a smaller one, or a fraction of the training below 1."
            )
        elif 0 < steps - first < int(growing):
            warnings.append(
                f"Expected `warmup` to end within the training of {steps} optimizer steps, but got {warmup}: "
                f"{name} will only reach {(steps - first) / growing:.2g} of its perturbation. Give a smaller one, or a "
                "fraction of the training, at most 1.0."
            )
        if line and warmup:
            how = "as the loss falls" if warmup == "auto" else f"over {growing:.4g} optimizer steps"
            line += f", growing to that {how}"
        return line, *filter(None, warnings)

    def describe_once(self) -> None:
        """Log, once, the line of :meth:`describe`; for loops without a callback."""
        opening, self.opening = self.opening, ("", "")
        say(*opening)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if self.is_unattached else {**state, "batches": self.progress.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if not self.is_unattached:
            self.progress.batches = state.get("batches", 0)


@options
class OnEmbeddings(Options):
    """Perturbs embeddings."""

    emb_name: str | None = option(
        default=None,
        check=check_name,
        doc="part of a parameter's name, a glob, or ``None`` for the input embedding; see "
        ":func:`~fastnlp_adv.taps.find_embeddings`",
    )


@options
class SharesDropout(ModelMethod):
    """Runs several passes, which may share a dropout mask."""

    dropout_mask: DropoutMask = option(
        default="new",
        check=one_of("new", "same"),
        doc='``"new"``: each pass draws its own dropout mask; ``"same"``: all passes of a step share one',
    )

    def begin_dropout(self) -> Callable[[], None]:
        """Return the function to call before each forward of a step."""
        return same_dropout(self.model) if self.dropout_mask == "same" else lambda: None
