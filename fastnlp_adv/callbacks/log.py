"""The values that methods measure: as numbers, as text, in a log, and handed to fitlog, TensorBoard and functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from fastNLP import Callback, RichCallback, TqdmCallback, logger

from ..options import check_count
from .base import MethodCallback

__all__ = ["LogCallback", "as_text", "log_values", "measured"]

#: TensorBoard's tags are ``adv/loss`` and so on; fitlog's names are the same
GROUP = "adv"
#: what fastNLP's other columns take of a line, a bar of 40 among them, and what is shown beside them at least
RICH_COLUMNS, LEAST_ROOM = 88, 18


def measured(trainer: Any) -> dict[str, float]:
    """
    Return ``trainer.state["adv"]`` as numbers. It reads tensors, so it waits for the device.

    :param trainer: the Trainer.
    :return: the numbers by name; empty where no method has run yet.
    """
    return {name: float(value) for name, value in trainer.state.get("adv", {}).items() if value is not None}


def as_text(values: dict[str, float]) -> str:
    """
    Write numbers in one line.

    :param values: numbers by name.
    :return: ``name=value`` pairs, with four digits.

    Example::

        >>> as_text({"loss": 0.69314, "skipped": 0.0})
        'loss=0.6931, skipped=0'
    """
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


def log_values(trainer: Any, values: dict[str, float]) -> None:
    """
    Write what was measured to fastNLP's log.

    :param trainer: the Trainer.
    :param values: numbers by name; nothing is written where there are none.
    """
    if values:
        logger.info(f"Batch {trainer.global_forward_batches}: {as_text(values)}")


class LogCallback(Callback):
    """
    Hands ``trainer.state["adv"]`` on every so many batches: loss, adversarial loss, divergence, norms, whatever the
    methods of the Trainer measured. On the first rank alone; in between nothing is read, so nothing waits for the
    device. Its place among the callbacks does not matter. What it writes to is yours to open and to close.

    :param writers: any number of: fitlog (the module), a TensorBoard ``SummaryWriter`` or another object with
        ``add_scalar(tag, value, step)``, and functions of ``(values, step)``, ``values`` a dict of floats and ``step``
        the number of batches that have been trained. Without any, and without ``progress_bar``, fastNLP's own log, one
        line per reading.
    :param every: how many batches from one reading to the next.
    :param progress_bar: show them in the progress bar too: in a ``"rich"`` or ``"tqdm"`` bar behind the epoch (in the
        first as many as there is room for), else as a line of fastNLP's log.
    :raises ValueError: if an argument is out of range.
    :raises TypeError: if a writer is none.

    Example::

        >>> rows = []
        >>> callback = LogCallback(lambda values, step: rows.append({"step": step, **values}), every=5)
    """

    def __init__(self, *writers: Any, every: int = 10, progress_bar: bool = False):
        super().__init__()
        check_count("every", every)
        self.writers = writers
        self.every = every
        self.progress_bar = progress_bar
        places = [_place(writer) for writer in writers] + [_to_progress_bar] * progress_bar
        self._places = places or [log_values]

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        if not any(isinstance(other, MethodCallback) for other in trainer.callback_manager.class_callbacks):
            logger.rank_zero_warning(
                "LogCallback has nothing to log: it logs what this package's callbacks measure, and the Trainer has "
                "none of them. (A model with RDropMixin is measured once it has an RDropCallback as well.)"
            )

    def on_train_batch_end(self, trainer: Any) -> None:
        if trainer.global_forward_batches % self.every == 0 and trainer.driver.global_rank == 0:
            values = measured(trainer)
            for write in self._places if values else ():
                write(trainer, values)


_Place = Callable[[Any, dict[str, float]], None]


def _place(writer: Any) -> _Place:
    if hasattr(writer, "add_scalar"):
        return partial(_to_tensorboard, writer)
    if hasattr(writer, "add_loss"):
        return partial(_to_fitlog, writer)
    if callable(writer):
        return partial(_to_function, writer)
    raise TypeError(
        "Expected `writers` to be fitlog, objects with `add_scalar`, or functions of (values, step), but got "
        f"{writer!r}. For TensorBoard give a `SummaryWriter`."
    )


def _to_function(function: Callable[[dict[str, float], int], None], trainer: Any, values: dict[str, float]) -> None:
    function(dict(values), trainer.global_forward_batches)


def _to_tensorboard(writer: Any, trainer: Any, values: dict[str, float]) -> None:
    for name, value in values.items():
        writer.add_scalar(f"{GROUP}/{name}", value, trainer.global_forward_batches)


def _to_fitlog(fitlog: Any, trainer: Any, values: dict[str, float]) -> None:
    # Names of their own: FitlogCallback writes a "loss" as well, a mean over batches. One by one, since with a dict
    # fitlog 0.9.15 asks for what NumPy 2 no longer has.
    for name, value in values.items():
        fitlog.add_loss(value, step=trainer.global_forward_batches, name=f"{GROUP}/{name}", epoch=trainer.cur_epoch_idx)


def _to_progress_bar(trainer: Any, values: dict[str, float]) -> None:
    shown = [c for c in trainer.callback_manager.class_callbacks if isinstance(c, (RichCallback, TqdmCallback))]
    # The end of the epoch's line is free in both; that of the batch's is where fastNLP shows the loss.
    for bar in shown:
        if isinstance(bar, RichCallback):
            room = max(shutil.get_terminal_size().columns - RICH_COLUMNS, LEAST_ROOM)
            bar.progress_bar.update(bar.task2id["epoch"], post_desc=_cut(as_text(values), room))
        else:
            bar.progress_bar.set_postfix_str(bar.task2id["epoch"], as_text(values))
    if not shown:
        log_values(trainer, values)


def _cut(text: str, room: int) -> str:
    """Drop the last values of a text that is too long; rich would squeeze the bar instead."""
    while len(text) > room and ", " in text:
        text = text.rsplit(", ", 1)[0]
    return text
