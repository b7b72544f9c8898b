"""The values that methods measure, in fastNLP's log, progress bars, fitlog, TensorBoard and functions."""

from __future__ import annotations

import shutil
from typing import Any

from fastNLP import Callback, RichCallback, TqdmCallback, logger

from ..options import check_count
from .base import MethodCallback

#: TensorBoard's tags are ``adv/loss`` and so on; fitlog's names are the same
GROUP = "adv"
#: the room that fastNLP's other columns take of a line, a bar of 40 among them, and the least that is shown
RICH_COLUMNS, LEAST_ROOM = 88, 18


def as_text(values: dict[str, float]) -> str:
    """Write numbers in one line, with four digits."""
    return ", ".join(f"{name}={value:.4g}" for name, value in values.items())


class LogCallback(Callback):
    """
    Logs ``trainer.state["adv"]`` at intervals: loss, adversarial loss, divergence, norms, all values that the methods
    of the Trainer measured. On the first rank only; without host-device synchronization in between. The order of
    callbacks does not matter. Open and close the writers yourself.

    :param writers: any number of: fitlog (the module), a TensorBoard ``SummaryWriter`` or another object with
        ``add_scalar(tag, value, step)``, and functions of ``(values, step)``, ``values`` a dict of floats and ``step``
        the number of batches that have been trained. Without any, and without ``progress_bar``, fastNLP's own log, one
        line per reading.
    :param every: how many batches from one reading to the next.
    :param progress_bar: show them in the progress bar too: in a ``"rich"`` or ``"tqdm"`` bar behind the epoch (in the
        first as many as there is room for), else as a line of fastNLP's log.
    :raises ValueError: if an argument is out of range.
    :raises TypeError: if a writer is of none of these kinds.

    Example::

        >>> rows = []
        >>> callback = LogCallback(lambda values, step: rows.append({"step": step, **values}), every=5)
    """

    def __init__(self, *writers: Any, every: int = 10, progress_bar: bool = False):
        super().__init__()
        check_count("every", every)
        for writer in writers:
            if not (hasattr(writer, "add_scalar") or hasattr(writer, "add_loss") or callable(writer)):
                raise TypeError(
                    "Expected `writers` to be fitlog, objects with `add_scalar`, or functions of (values, step), but "
                    f"got {writer!r}. For TensorBoard give a `SummaryWriter`."
                )
        self.writers = writers
        self.every = every
        self.progress_bar = progress_bar

    def on_after_trainer_initialized(self, trainer: Any, driver: Any) -> None:
        if not any(isinstance(other, MethodCallback) for other in trainer.callback_manager.class_callbacks):
            logger.rank_zero_warning(
                "LogCallback has nothing to log: the Trainer has no callback of a method of this package. Add one (for "
                "a model with RDropMixin, RDropCallback), or remove LogCallback."
            )

    def on_train_batch_end(self, trainer: Any) -> None:
        if trainer.global_forward_batches % self.every or trainer.driver.global_rank != 0:
            return
        # reading a tensor waits for the device
        values = {name: float(value) for name, value in trainer.state.get("adv", {}).items() if value is not None}
        if not values:
            return
        for writer in self.writers:
            _write(writer, trainer, values)
        shown = [c for c in trainer.callback_manager.class_callbacks if isinstance(c, (RichCallback, TqdmCallback))]
        bars = shown if self.progress_bar else []
        for bar in bars:
            _show(bar, values)
        if not bars and (self.progress_bar or not self.writers):
            logger.info(f"Batch {trainer.global_forward_batches}: {as_text(values)}")


def _write(writer: Any, trainer: Any, values: dict[str, float]) -> None:
    step = trainer.global_forward_batches
    if hasattr(writer, "add_scalar"):
        for name, value in values.items():
            writer.add_scalar(f"{GROUP}/{name}", value, step)
    elif hasattr(writer, "add_loss"):
        # Names of their own: FitlogCallback writes a "loss" as well, a mean over batches. One by one, since with a dict
        # fitlog 0.9.15 uses a part of NumPy that NumPy 2 does not have.
        for name, value in values.items():
            writer.add_loss(value, step=step, name=f"{GROUP}/{name}", epoch=trainer.cur_epoch_idx)
    else:
        writer(dict(values), step)


def _show(bar: Any, values: dict[str, float]) -> None:
    """Show values behind the epoch, where both kinds of bars have room; behind the batch fastNLP shows the loss."""
    text = as_text(values)
    if isinstance(bar, TqdmCallback):
        bar.progress_bar.set_postfix_str(bar.task2id["epoch"], text)
        return
    room = max(shutil.get_terminal_size().columns - RICH_COLUMNS, LEAST_ROOM)
    while len(text) > room and ", " in text:  # rich would squeeze the bar instead
        text = text.rsplit(", ", 1)[0]
    bar.progress_bar.update(bar.task2id["epoch"], post_desc=text)
